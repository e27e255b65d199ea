#!/usr/bin/env bash
# What CI cannot check: NCCL, its parity with MPI and its speed, on a machine with an NVIDIA GPU. Not part of ctest.
# Needs scripts/setup.sh --cuda and a release build. Usage: tests/gpu/run.sh [BUILD_DIR]
#   1. the plug-in loads and sees the devices
#   2. every collective, type and size of the shared tests gives its closed-form answer on one rank per device
#   3. bandwidth of each collective, one JSON line each
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=${1:-build/release}
# shellcheck source=scripts/mpi_env.sh
source scripts/mpi_env.sh
fail() { echo "FAILED: $*" >&2; exit 1; }

command -v nvidia-smi >/dev/null || fail "no NVIDIA driver on this machine (nvidia-smi is not there)"
devices=$(nvidia-smi -L | wc -l)
[ "$devices" -ge 1 ] || fail "nvidia-smi lists $devices devices"
echo "[gpu] $devices device(s)"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

"$build/uqa" doctor --device=cuda || fail "uqa doctor --device=cuda on one rank"
if [ "$devices" -eq 1 ]; then
  # NCCL refuses two ranks on one device; so does uqa, and says so.
  if error=$(mpirun -np 2 "$build/uqa" doctor --device=cuda 2>&1 >/dev/null); then fail "two ranks on one device were accepted"; fi
  grep -q 'CUDA devices that they see = 1' <<< "$error" || fail "the refusal does not name the number of devices: $error"
  echo "[gpu] one device: no group of several ranks can be made here; collectives between devices were not checked"
  exit 0
fi

for np in 2 "$devices"; do
  echo "[gpu] collectives on $np ranks"
  mpirun -np "$np" "$build/tests/gpu/collectives_cuda" "$build/libuqa_nccl.so" || fail "collectives on $np ranks"
done
mpirun -np "$devices" "$build/uqa" doctor --device=cuda
mpirun -np "$devices" "$build/uqa" bench collectives --device=cuda --sizes 1024 1048576 67108864 268435456
echo "[gpu] passed"
