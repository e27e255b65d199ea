# Test helpers. Every test is listed by ctest with a label: unit, golden, dist, fault, fuzz, badinput.
find_package(GTest REQUIRED)
include(GoogleTest)

# A precompiled header serves only files compiled as it was: -fPIC, also in programs. -O1 compiles tests in half the time.
function(uqa_reuse_torch_pch name)
  target_compile_options(${name} PRIVATE -fPIC -O1)
  target_precompile_headers(${name} REUSE_FROM uqa_torch_pch)
endfunction()

# uqa_add_unit_test(name SOURCES... [LINK targets...] [TORCH] [UNITE] [LABEL unit]): one GoogleTest program, one ctest entry. UNITE compiles
# its sources as one file (see uqa_unite).
function(uqa_add_unit_test name)
  cmake_parse_arguments(T "TORCH;UNITE" "LABEL" "LINK" ${ARGN})
  if(NOT T_LABEL)
    set(T_LABEL unit)
  endif()
  add_executable(${name} ${T_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE ${T_LINK} uqa_test_support uqa_warnings GTest::gtest GTest::gmock GTest::gtest_main)
  target_include_directories(${name} PRIVATE "${CMAKE_SOURCE_DIR}")
  if(T_UNITE)
    set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  endif()
  if(T_TORCH)
    uqa_reuse_torch_pch(${name})
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${T_LABEL} TIMEOUT 600)
endfunction()

# uqa_add_dist_test(name SOURCES... NP 1 2 4 [LINK targets...] [LABEL dist]): one program on tests/dist/dist_main.cpp, run
# once per rank count as name.npN with one thread a rank.
function(uqa_add_dist_test name)
  cmake_parse_arguments(T "" "LABEL" "NP;LINK" ${ARGN})
  if(NOT T_LABEL)
    set(T_LABEL dist)
  endif()
  add_executable(${name} ${T_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE ${T_LINK} uqa_test_support uqa_dist_main uqa_warnings)
  target_include_directories(${name} PRIVATE "${CMAKE_SOURCE_DIR}")
  uqa_reuse_torch_pch(${name})
  foreach(np IN LISTS T_NP)
    add_test(NAME ${name}.np${np} COMMAND mpirun -np ${np} --oversubscribe --bind-to none $<TARGET_FILE:${name}>)
    set_tests_properties(${name}.np${np} PROPERTIES LABELS ${T_LABEL} PROCESSORS 2 TIMEOUT 300
      ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMP_NUM_THREADS=1")
  endforeach()
endfunction()
