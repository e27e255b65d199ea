# ccache and lld where they are installed (scripts/setup.sh installs both).
find_program(UQA_CCACHE ccache)
if(UQA_CCACHE)
  # pch_defines, time_macros: needed for precompiled headers. CCACHE_BASEDIR: every clone on a machine shares what one has compiled.
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime"
      "CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}" "CCACHE_NOHASHDIR=1" "${UQA_CCACHE}")
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
endif()
# Not mold: that of Debian 12 (1.10) now and then links a program whose RELRO segment begins in a page that is not mapped, depending on
# file paths; the loader then ends it with "cannot apply additional memory protection after relocation" (rui314/mold issue 1151).
find_program(UQA_LLD ld.lld)
if(UQA_LLD)
  add_link_options(-fuse-ld=lld)
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

# uqa_unite(name GROUPS): compiles the sources of a target together, GROUPS translation units in all. What LibTorch's templates cost is paid
# once a unit, not once a file: four files take 22 s of one core instead of 60. A file's unit follows from a hash of its name, so that a
# new file changes one unit only. In one unit anonymous namespaces are one: names in them differ between files of a folder.
function(uqa_unite name groups)
  get_target_property(sources ${name} SOURCES)
  foreach(source IN LISTS sources)
    cmake_path(GET source FILENAME file)
    string(SHA1 hash "${file}")
    string(SUBSTRING "${hash}" 0 4 hash)
    math(EXPR group "0x${hash} % ${groups}")
    set_source_files_properties("${source}" PROPERTIES UNITY_GROUP "${group}")
  endforeach()
  set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()
