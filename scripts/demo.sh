#!/usr/bin/env bash
# From a real interaction log to answered questions: MovieLens-100K, Trm++ (or five encoders), SmolLM2-135M-Instruct. Sets up and builds first.
# Usage: scripts/demo.sh [--full] [--encoders all] [--output demo]
#   --full           6,000 training questions, 3 alignment seeds, 4,200 test questions, significance tests
#   --encoders LIST  trm_plus, or a list of sasrec,hstu,gru4rec,mamba2,trm_plus, or all: each is pre-trained and aligned, one table
#                    (several encoders without --full: 2,800 training questions, half of what one gets, so that five take about an hour)
# Run again, it reuses what is done. The table is printed and written to demo/result.json (--full: demo/full, several encoders: demo/encoders).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

full=0
demo=demo
encoders=trm_plus
while [ $# -gt 0 ]; do
  case "$1" in
    --full) full=1; shift ;;
    --encoders) encoders=${2:?--encoders needs a list}; shift 2 ;;
    --output) demo=${2:?--output needs a directory}; shift 2 ;;
    -h|--help) sed -n '2,7s/^# //p' "$0"; exit 0 ;;
    *) echo "demo.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
done

[ "$encoders" = all ] && encoders=trm_plus,sasrec,hstu,gru4rec,mamba2
encoders=${encoders//,/ }
for encoder in $encoders; do
  [ -e "recipes/ml-100k-$encoder.ini" ] || { echo "demo.sh: --encoders: '$encoder' is none of sasrec, hstu, gru4rec, mamba2, trm_plus" >&2; exit 2; }
done
first=${encoders%% *}

scripts/setup.sh --models
# shellcheck source=scripts/mpi_env.sh
source scripts/mpi_env.sh
echo "[demo] building"
cmake --preset release >/dev/null
cmake --build --preset release --target uqa -- --quiet

uqa=build/release/uqa
llm=third_party/smollm2-135m-instruct
if [ "$full" = 1 ]; then
  work=$demo/full seeds=(1 2 3) train=6000 test=4200 titles=16
elif [ "$encoders" != "$first" ]; then
  work=$demo/encoders seeds=(1) train=2800 test=560 titles=32
else
  work=$demo seeds=(1) train=5600 test=560 titles=32
fi
start=$(date +%s)
stage() { printf '\n[demo %4d s] %s\n' "$(($(date +%s) - start))" "$*"; }
reuse() { echo "done before: $1"; }
ranks() { mpirun -np 2 "$uqa" "$@"; }
mkdir -p "$work"

stage "import MovieLens-100K into HDF5 shards"
if [ -e "$demo/data/manifest.json" ]; then reuse "$demo/data"; else
  "$uqa" import --schema recipes/ml-100k.schema.json --input third_party/ml-100k/ml-100k.inter third_party/ml-100k/ml-100k.item \
    --output "$demo/data" --overwrite
fi

stage "build questions of seven types with fair options; users of test questions are kept out of all training"
if [ -e "$work/questions/questions.json" ]; then reuse "$work/questions"; else
  "$uqa" questions --data "$demo/data" --output "$work/questions" --language en --train "$train" --test "$test"
fi

for encoder in $encoders; do
  stage "pre-train $encoder on the other users: next film, exact softmax over every film, 2 ranks"
  if [ -e "$work/$encoder/result.json" ]; then reuse "$work/$encoder"; else
    ranks pretrain --config "recipes/ml-100k-$encoder.ini" --data "$demo/data" --run "$work/$encoder" \
      --data.split="files:$work/questions/users_train.txt,$work/questions/users_valid.txt"
  fi
done

align() {  # encoder, run, seed, further options...
  local encoder=$1 run=$2 seed=$3
  shift 3
  if [ -e "$run/result.json" ]; then reuse "$run"; return; fi
  ranks align --config recipes/ml-100k-align.ini --data "$demo/data" --questions "$work/questions" --encoder-run "$work/$encoder" --llm "$llm" \
    --run "$run" --train.seed="$seed" "$@"
}

evaluate() {  # run, prompt, further options...
  local run=$1 prompt=$2
  shift 2
  ranks evaluate --run "$run" --data "$demo/data" --prompt "$prompt" "$@"
}

arms=()
add_arm() {  # name, run, directory name, prompt, further options...
  local name=$1 run=$2 directory=$3 prompt=$4
  shift 4
  if [ -e "$run/eval/$directory/result.json" ]; then reuse "$run/eval/$directory"; else
    evaluate "$run" "$prompt" --output "$run/eval/$directory" "$@" >/dev/null
  fi
  arms+=("$name=$run/eval/$directory")
}

for encoder in $encoders; do
  for seed in "${seeds[@]}"; do
    stage "align one soft token of $encoder to SmolLM2-135M-Instruct, seed $seed, 2 ranks"
    align "$encoder" "$work/$encoder-align-$seed" "$seed"
  done
done
if [ "$full" = 1 ]; then
  for seed in "${seeds[@]}"; do
    stage "tune the baseline that sees no user with equal budget, seed $seed"
    align "$first" "$work/tuned-none-$seed" "$seed" --prompt none --objective choice --calibrate=false
  done
fi

stage "answer the test questions"
run="$work/$first-align"
for seed in "${seeds[@]}"; do add_arm soft "$run-$seed" soft soft; done
for seed in "${seeds[@]}"; do add_arm none "$run-$seed" none none; done
if [ "$full" = 1 ]; then
  for seed in "${seeds[@]}"; do add_arm tuned-none "$work/tuned-none-$seed" none none; done
  # five permutations of users over the seeds
  for shuffle in 1 2 3 4 5; do
    add_arm shuffled "$run-$(((shuffle - 1) % 3 + 1))" "shuffled-$shuffle" shuffled --shuffle_seed "$shuffle"
  done
  add_arm zero "$run-1" zero zero
else
  add_arm shuffled "$run-1" shuffled shuffled
fi
add_arm text "$run-1" text text --text_items $titles
for encoder in $encoders; do
  [ "$encoder" = "$first" ] && continue
  for seed in "${seeds[@]}"; do
    add_arm "soft-$encoder" "$work/$encoder-align-$seed" soft soft
    add_arm "shuffled-$encoder" "$work/$encoder-align-$seed" shuffled shuffled
  done
done
if [ -e "$work/prior/result.json" ]; then reuse "$work/prior"; else
  "$uqa" evaluate --prompt prior --run "$run-1" --data "$demo/data" --questions "$work/questions" --output "$work/prior" >/dev/null
fi
arms+=("prior-only=$work/prior")

stage "compare"
"$uqa" compare "${arms[@]}" --output "$work/result.json" --overwrite
stage "done: $work/result.json"
