# TorchWheel::torch: LibTorch's CPU libraries inside the PyPI wheel torch. The wheel's own find_package(Torch) wants a CUDA
# toolkit; libtorch_cpu and libc10 need only the CUDA runtime and CUPTI shared objects that setup.sh installs beside it.
file(GLOB TorchWheel_ROOT "${UQA_VENV}/lib/python3*/site-packages/torch")
find_path(TorchWheel_INCLUDE_DIR torch/csrc/autograd/variable.h PATHS "${TorchWheel_ROOT}/include" NO_DEFAULT_PATH)
find_library(TorchWheel_CPU_LIBRARY torch_cpu PATHS "${TorchWheel_ROOT}/lib" NO_DEFAULT_PATH)
find_library(TorchWheel_C10_LIBRARY c10 PATHS "${TorchWheel_ROOT}/lib" NO_DEFAULT_PATH)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TorchWheel REQUIRED_VARS TorchWheel_CPU_LIBRARY TorchWheel_C10_LIBRARY TorchWheel_INCLUDE_DIR
                                  REASON_FAILURE_MESSAGE "run scripts/setup.sh")
if(TorchWheel_FOUND AND NOT TARGET TorchWheel::torch)
  file(GLOB TorchWheel_CUDA_DIRS "${TorchWheel_ROOT}/../nvidia/*/lib")
  add_library(TorchWheel::torch INTERFACE IMPORTED)
  target_include_directories(TorchWheel::torch SYSTEM INTERFACE "${TorchWheel_INCLUDE_DIR}"
                             "${TorchWheel_INCLUDE_DIR}/torch/csrc/api/include")
  # no-as-needed: libtorch_cpu registers its operators from static constructors.
  target_link_libraries(TorchWheel::torch INTERFACE -Wl,--push-state,--no-as-needed "${TorchWheel_CPU_LIBRARY}"
                        "${TorchWheel_C10_LIBRARY}" -Wl,--pop-state)
  set(TorchWheel_RPATH "${TorchWheel_ROOT}/lib" ${TorchWheel_CUDA_DIRS})
  foreach(dir IN LISTS TorchWheel_RPATH)
    target_link_options(TorchWheel::torch INTERFACE "LINKER:-rpath-link,${dir}" "LINKER:-rpath,${dir}")
  endforeach()
  # at::parallel_for is a template: our files need -fopenmp, and the runtime must be the one that libtorch_cpu loads.
  add_library(TorchWheel::openmp INTERFACE IMPORTED)
  target_compile_options(TorchWheel::openmp INTERFACE -fopenmp)
  target_link_libraries(TorchWheel::openmp INTERFACE "${TorchWheel_ROOT}/lib/libgomp.so.1")
endif()
