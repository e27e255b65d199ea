#!/usr/bin/env bash
# Sets everything up, builds, and runs all tests with ctest.
# Usage: scripts/test.sh [--long] [ctest options]      for example: scripts/test.sh -L golden
#   --long   also the sanitizer build of the torch-free libraries, and exports under stock transformers (tests/interop; 5 GB for .venv-interop)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

long=0
ctest_options=()
for arg in "$@"; do
  case "$arg" in
    --long) long=1 ;;
    -h|--help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) ctest_options+=("$arg") ;;
  esac
done

if [ "$long" = 1 ]; then scripts/setup.sh --models --interop; else scripts/setup.sh --models; fi
# shellcheck source=scripts/mpi_env.sh
source scripts/mpi_env.sh

build() {
  echo "[test] building preset $1"
  cmake --preset "$1" >/dev/null
  cmake --build --preset "$1" -- --quiet
}

build release
if [ "$long" = 1 ]; then
  build asan
  ctest --test-dir build/asan --output-on-failure -j 2 "${ctest_options[@]}"
  tests/interop/interop.sh build/release
fi
ctest --test-dir build/release --output-on-failure -j 2 "${ctest_options[@]}"
