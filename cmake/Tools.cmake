# ccache and mold where they are installed (scripts/setup.sh installs both).
find_program(UQA_CCACHE ccache)
if(UQA_CCACHE)
  # pch_defines, time_macros: needed for precompiled headers.
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime" "${UQA_CCACHE}")
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
endif()
find_program(UQA_MOLD mold)
if(UQA_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# uqa_add_library(name SOURCES... [LINK targets...]): one library target per folder, alias uqa::name.
function(uqa_add_library name)
  cmake_parse_arguments(L "" "" "LINK" ${ARGN})
  add_library(uqa_${name} STATIC ${L_UNPARSED_ARGUMENTS})
  add_library(uqa::${name} ALIAS uqa_${name})
  set_target_properties(uqa_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_include_directories(uqa_${name} PUBLIC "${CMAKE_SOURCE_DIR}")
  target_link_libraries(uqa_${name} PUBLIC ${L_LINK} PRIVATE uqa_warnings)
endfunction()
