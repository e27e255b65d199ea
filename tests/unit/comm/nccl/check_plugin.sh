#!/usr/bin/env bash
# The NCCL plug-in is there, exports one function, and is the only part of the build that needs CUDA's libraries by itself.
# Usage: check_plugin.sh BUILD_DIR
set -uo pipefail
build=$1
plugin=$build/libuqa_nccl.so
fail() { echo "FAILED: $*"; exit 1; }
[ -s "$plugin" ] || fail "$plugin is not built; run scripts/setup.sh, which installs the wheels that it compiles against"
exported=$(nm -D --defined-only "$plugin" | awk '{print $3}')
[ "$exported" = uqa_make_device_plugin ] || fail "exported symbols are: $exported"
needed=$(readelf -d "$plugin" | grep NEEDED)
for library in libnccl.so.2 libtorch_cuda.so libc10_cuda.so libcudart.so.13; do
  grep -q "\[$library\]" <<< "$needed" || fail "$plugin does not need $library, so LibTorch's CUDA operators or NCCL would be missing"
done
if [ -x "$build/uqa" ]; then
  ! readelf -d "$build/uqa" | grep NEEDED | grep -Eq 'libnccl|libtorch_cuda|libc10_cuda' || fail "uqa itself needs CUDA libraries"
fi
echo "plug-in is whole"
