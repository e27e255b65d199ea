# NcclWheel::headers, NcclWheel::nccl: what the NCCL plug-in compiles and links against, from PyPI wheels alone: nvidia-nccl-cu13,
# nvidia-cuda-runtime, and the CUDA part of torch. No CUDA toolkit and no GPU; running it needs scripts/setup.sh --cuda.
file(GLOB NcclWheel_NVIDIA "${UQA_VENV}/lib/python3*/site-packages/nvidia")
file(GLOB NcclWheel_TORCH "${UQA_VENV}/lib/python3*/site-packages/torch")
find_path(NcclWheel_NCCL_INCLUDE_DIR nccl.h PATHS "${NcclWheel_NVIDIA}/nccl/include" NO_DEFAULT_PATH)
find_path(NcclWheel_CUDA_INCLUDE_DIR cuda_runtime_api.h PATHS "${NcclWheel_NVIDIA}/cu13/include" NO_DEFAULT_PATH)
find_file(NcclWheel_NCCL_LIBRARY libnccl.so.2 PATHS "${NcclWheel_NVIDIA}/nccl/lib" NO_DEFAULT_PATH)
find_file(NcclWheel_CUDART_LIBRARY libcudart.so.13 PATHS "${NcclWheel_NVIDIA}/cu13/lib" NO_DEFAULT_PATH)
find_library(NcclWheel_TORCH_CUDA_LIBRARY torch_cuda PATHS "${NcclWheel_TORCH}/lib" NO_DEFAULT_PATH)
find_library(NcclWheel_C10_CUDA_LIBRARY c10_cuda PATHS "${NcclWheel_TORCH}/lib" NO_DEFAULT_PATH)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NcclWheel REQUIRED_VARS NcclWheel_NCCL_LIBRARY NcclWheel_NCCL_INCLUDE_DIR NcclWheel_CUDART_LIBRARY
                                  NcclWheel_CUDA_INCLUDE_DIR NcclWheel_TORCH_CUDA_LIBRARY NcclWheel_C10_CUDA_LIBRARY
                                  REASON_FAILURE_MESSAGE "libuqa_nccl.so (--device=cuda) is not built, run scripts/setup.sh")
if(NcclWheel_FOUND AND NOT TARGET NcclWheel::nccl)
  add_library(NcclWheel::headers INTERFACE IMPORTED)
  target_include_directories(NcclWheel::headers SYSTEM INTERFACE "${NcclWheel_NCCL_INCLUDE_DIR}" "${NcclWheel_CUDA_INCLUDE_DIR}")
  add_library(NcclWheel::nccl INTERFACE IMPORTED)
  # libtorch_cuda registers LibTorch's CUDA operators when it is loaded. The libraries that it needs itself (cuDNN, cuBLAS, ... 5 GB) are not
  # needed to link against it.
  target_link_libraries(NcclWheel::nccl INTERFACE NcclWheel::headers -Wl,--push-state,--no-as-needed "${NcclWheel_TORCH_CUDA_LIBRARY}"
                        "${NcclWheel_C10_CUDA_LIBRARY}" "${NcclWheel_NCCL_LIBRARY}" "${NcclWheel_CUDART_LIBRARY}" -Wl,--pop-state)
  target_link_options(NcclWheel::nccl INTERFACE LINKER:--allow-shlib-undefined)
  foreach(part IN ITEMS nccl cu13 cudnn cusparselt nvshmem)
    target_link_options(NcclWheel::nccl INTERFACE "LINKER:-rpath,${NcclWheel_NVIDIA}/${part}/lib")
  endforeach()
endif()
