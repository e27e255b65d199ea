#!/usr/bin/env bash
# From a real interaction log to answered questions: MovieLens-100K, Trm++, SmolLM2-135M-Instruct. Sets up and builds first.
# Usage: scripts/demo.sh [--full] [--output demo]
#   --full    20,000 and more training questions, 3 alignment seeds, at least 4,000 test questions, significance tests (about 2 hours)
# Run again, it reuses what is done. The result is printed and written to demo/result.json (--full: demo/full/result.json).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

full=0
demo=demo
while [ $# -gt 0 ]; do
  case "$1" in
    --full) full=1; shift ;;
    --output) demo=$2; shift 2 ;;
    -h|--help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
    *) echo "demo.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
done

scripts/setup.sh --models
# shellcheck source=scripts/mpi_env.sh
source scripts/mpi_env.sh
echo "[demo] building"
cmake --preset release >/dev/null
cmake --build --preset release --target uqa -- --quiet

uqa=build/release/uqa
llm=third_party/smollm2-135m-instruct
start=$(date +%s)
stage() { printf '\n[demo %4ds] %s\n' "$(($(date +%s) - start))" "$*"; }
ranks() { mpirun -np 2 "$uqa" "$@"; }
mkdir -p "$demo"

stage "import: MovieLens-100K into HDF5 shards"
if [ -e "$demo/data/manifest.json" ]; then echo "done before: $demo/data"; else
  "$uqa" import --schema recipes/ml-100k.schema.json --input third_party/ml-100k/ml-100k.inter --items third_party/ml-100k/ml-100k.item \
    --output "$demo/data"
fi

stage "pre-train: Trm++, next film, exact softmax over every film, 2 ranks"
if [ -e "$demo/trm/result.json" ]; then echo "done before: $demo/trm"; else
  ranks pretrain --config recipes/ml-100k-trm_plus.ini --data "$demo/data" --run "$demo/trm"
fi

if [ "$full" = 1 ]; then
  work=$demo/full seeds="1 2 3" train=24000 test=4200
else
  work=$demo/quick seeds="1" train=4800 test=700
fi

stage "questions: seven types with fair options, users of train and test apart"
if [ -e "$work/questions/questions.json" ]; then echo "done before: $work/questions"; else
  "$uqa" questions --data "$demo/data" --output "$work/questions" --language en --train "$train" --test "$test"
fi

evaluate() {  # run, prompt, further options...
  local run=$1 prompt=$2
  shift 2
  if compgen -G "$run/eval/$prompt-*/result.json" >/dev/null; then echo "done before: $run, $prompt"; else
    ranks evaluate --run "$run" --data "$demo/data" --questions "$work/questions" --prompt "$prompt" "$@"
  fi
}

for seed in $seeds; do
  stage "align: soft token into $(basename "$llm"), 2 ranks, seed $seed"
  run=$work/align-$seed
  if [ -e "$run/model.json" ]; then echo "done before: $run"; else
    ranks align --config recipes/ml-100k-align.ini --data "$demo/data" --questions "$work/questions" --encoder-run "$demo/trm" --llm "$llm" \
      --run "$run" --train.seed="$seed"
  fi
done
