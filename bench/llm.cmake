# Not part of `all`: ninja llm_step
add_executable(llm_step EXCLUDE_FROM_ALL "${CMAKE_CURRENT_LIST_DIR}/llm_step.cpp")
target_link_libraries(llm_step PRIVATE uqa::models uqa_warnings)
target_compile_options(llm_step PRIVATE -fPIC)  # as the precompiled header was
target_precompile_headers(llm_step REUSE_FROM uqa_torch_pch)
