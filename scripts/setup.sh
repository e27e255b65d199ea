#!/usr/bin/env bash
# Installs what uqa needs on a fresh Debian 12 machine: Debian packages and a .venv with pinned PyPI wheels.
# Idempotent: what is there already is left alone. Needs root or sudo for the Debian part only.
# Usage: scripts/setup.sh [--models] [--interop] [--cuda]
#   --models    also converts SmolLM2-135M-Instruct and extracts MovieLens-100K
#   --interop   also makes .venv-interop (transformers and an importable torch, 5 GB) for tests/interop and scripts/convert_checkpoint.py
#   --cuda      also installs the CUDA libraries that --device=cuda loads (4 GB; not needed to build)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[setup] %s\n' "$*"; }

want_models=0 want_interop=0 want_cuda=0
for arg in "$@"; do
  case "$arg" in
    --models) want_models=1 ;;
    --cuda) want_cuda=1 ;;
    --interop) want_interop=1 ;;
    -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "setup.sh: unknown option '$arg'; see --help" >&2; exit 2 ;;
  esac
done

packages=(
  g++ cmake ninja-build ccache lld git pkg-config python3 python3-venv
  libopenmpi-dev openmpi-bin libhdf5-openmpi-dev hdf5-tools
  libboost-program-options-dev libgtest-dev libgmock-dev nlohmann-json3-dev
  libpcre2-dev libutf8proc-dev libspdlog-dev libfmt-dev libxxhash-dev libjemalloc-dev
  slurm-wlm munge
  liblbfgs-dev chromium fonts-dejavu-core
)
missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "setup.sh: needs root or sudo to install: ${missing[*]}" >&2; exit 2; }
    sudo=(sudo)
  fi
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  say "Debian packages are there"
fi

# pip by module: the script's own first line names the environment that it was made for, which a copied one is not.
pip_install() {
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r "$2"
}

# make_venv DIR REQUIREMENTS SIZE: made anew when the requirements have changed.
make_venv() {
  local venv=$1 requirements=$2 size=$3 stamp=$1/.requirements.sha256
  if sha256sum --status -c "$stamp" 2>/dev/null; then
    say "$venv is there"
    return
  fi
  say "making $venv from $requirements (about $size of wheels)"
  rm -rf "$venv"
  /usr/bin/python3 -m venv "$venv"
  pip_install "$venv" "$requirements"
  sha256sum "$requirements" > "$stamp"
}
make_venv .venv scripts/requirements.txt "900 MB"
if [ "$want_interop" = 1 ]; then make_venv .venv-interop scripts/requirements-interop.txt "3 GB"; fi

if [ "$want_cuda" = 1 ]; then
  cuda_stamp=.venv/.requirements-cuda.sha256
  if ! sha256sum --status -c "$cuda_stamp" 2>/dev/null; then
    say "adding the CUDA libraries to .venv (4 GB)"
    pip_install .venv scripts/requirements-cuda.txt
    sha256sum scripts/requirements-cuda.txt > "$cuda_stamp"
  else
    say "CUDA libraries are there"
  fi
fi

if [ "$want_models" = 1 ]; then
  .venv/bin/python scripts/fetch_models.py --output third_party
fi
say "done"
