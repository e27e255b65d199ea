# Not part of `all`: ninja fit_coverage
add_executable(fit_coverage EXCLUDE_FROM_ALL "${CMAKE_CURRENT_LIST_DIR}/fit_coverage.cpp")
target_link_libraries(fit_coverage PRIVATE uqa::fit uqa_warnings)
