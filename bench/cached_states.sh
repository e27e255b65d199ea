#!/usr/bin/env bash
# Alignment with the states of a frozen encoder computed once (in memory, in an HDF5 file) against the encoder in every step: the same seed, 50 steps,
# a tiny LLM, so that the encoder is what a step costs. Prints losses' largest difference, encoder time and samples/s; writes cached_states.json.
# Usage: bench/cached_states.sh [--output build/cached_states] [--hidden 512] [--layers 4]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

output=build/cached_states
hidden=512  # with four layers the published backbone
layers=4
while [ $# -gt 0 ]; do
  case "$1" in
    --output) output=$2; shift 2 ;;
    --hidden) hidden=$2; shift 2 ;;
    --layers) layers=$2; shift 2 ;;
    -h|--help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "cached_states.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
done

scripts/setup.sh --models
cmake --preset release >/dev/null
cmake --build --preset release --target uqa -- --quiet
uqa=build/release/uqa

mkdir -p "$output"
[ -e "$output/data/manifest.json" ] || "$uqa" import --schema recipes/ml-100k.schema.json --input third_party/ml-100k/ml-100k.inter \
  third_party/ml-100k/ml-100k.item --output "$output/data" --overwrite
[ -e "$output/questions/questions.json" ] || "$uqa" questions --data "$output/data" --output "$output/questions" --train 1400 --test 280
[ -e "$output/encoder/result.json" ] || "$uqa" pretrain --data "$output/data" --run "$output/encoder" --overwrite --encoder trm_plus \
  --model.hidden="$hidden" --model.num_layers="$layers" --model.num_heads=4 --model.max_len=512 --train.epochs=1 --train.max_steps=5 \
  --data.split="files:$output/questions/users_train.txt,$output/questions/users_valid.txt" >/dev/null

arms=()
for kind in linear qformer; do
  for cache in off memory file; do
    run="$output/$kind-$cache"
    rm -rf "$run"
    where=$cache
    extra=()
    if [ "$cache" = file ]; then
      where="$output/$kind.h5"
      [ -e "$where" ] || extra=(--overwrite)
    fi
    [ "$kind" = qformer ] && extra+=(--adapter.tokens=4)
    "$uqa" align --data "$output/data" --questions "$output/questions" --encoder-run "$output/encoder" --llm tests/fixtures/llm/qwen2-tiny \
      --run "$run" --adapter.kind="$kind" --adapter.init=plain --cache.users="$where" --lora.rank=0 --train.dtype=float32 --optim.peak_lr=1e-4 \
      --batch.global_users=8 --train.max_steps=50 --train.log_every_steps=1 --validation_fraction=0 "${extra[@]}" >/dev/null
    arms+=("$kind-$cache")
  done
done
.venv/bin/python bench/cached_states_table.py "$output" "${arms[@]}"
