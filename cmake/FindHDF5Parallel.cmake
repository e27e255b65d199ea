# HDF5Parallel::hdf5: Debian's HDF5 built with Open MPI (libhdf5-openmpi-dev).
find_path(HDF5Parallel_INCLUDE_DIR hdf5.h PATH_SUFFIXES hdf5/openmpi)
find_library(HDF5Parallel_LIBRARY hdf5 PATH_SUFFIXES hdf5/openmpi)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(HDF5Parallel REQUIRED_VARS HDF5Parallel_LIBRARY HDF5Parallel_INCLUDE_DIR
                                  REASON_FAILURE_MESSAGE "run scripts/setup.sh")
if(HDF5Parallel_FOUND AND NOT TARGET HDF5Parallel::hdf5)
  find_package(MPI REQUIRED COMPONENTS C)
  add_library(HDF5Parallel::hdf5 INTERFACE IMPORTED)
  target_include_directories(HDF5Parallel::hdf5 SYSTEM INTERFACE "${HDF5Parallel_INCLUDE_DIR}")
  target_link_libraries(HDF5Parallel::hdf5 INTERFACE "${HDF5Parallel_LIBRARY}" MPI::MPI_C)
  target_compile_definitions(HDF5Parallel::hdf5 INTERFACE OMPI_SKIP_MPICXX)
endif()
