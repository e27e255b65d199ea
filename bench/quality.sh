#!/usr/bin/env bash
# Next-item quality on MovieLens-100K: leave-one-out, full ranking, seen items kept, best epoch by validation NDCG@10 of 30,
# mean and standard deviation over seeds, beside the reference implementation's own figures in the same setting.
# Usage: bench/quality.sh [--encoders trm_plus,sasrec,hstu,gru4rec,mamba2] [--seeds 1,2,3] [--output build/quality]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

encoders=trm_plus,sasrec,hstu,gru4rec,mamba2
seeds=1,2,3
output=build/quality
while [ $# -gt 0 ]; do
  case "$1" in
    --encoders) encoders=$2; shift 2 ;;
    --seeds) seeds=$2; shift 2 ;;
    --output) output=$2; shift 2 ;;
    -h|--help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "quality.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
done

scripts/setup.sh --models
cmake --preset release >/dev/null
cmake --build --preset release --target uqa -- --quiet
uqa=build/release/uqa

mkdir -p "$output"
[ -e "$output/data/manifest.json" ] || "$uqa" import --schema recipes/ml-100k.schema.json --input third_party/ml-100k/ml-100k.inter \
  third_party/ml-100k/ml-100k.item --output "$output/data" --overwrite
for encoder in ${encoders//,/ }; do
  # the reference's small setting of each encoder
  extra=()
  case "$encoder" in
    trm_plus) extra=(--model.inner=192) ;;
    sasrec) extra=(--model.inner=256) ;;
    hstu) extra=(--model.hstu.linear_dim=32 --model.hstu.attention_dim=32 --model.hstu.norm=max_len) ;;
    gru4rec) extra=(--model.inner=128) ;;
    mamba2) extra=(--model.mamba2.head_dim=32 --model.mamba2.state_size=64) ;;
  esac
  for seed in ${seeds//,/ }; do
    run="$output/$encoder-$seed"
    [ -e "$run/result.json" ] && continue
    start=$(date +%s.%N)
    "$uqa" pretrain --data "$output/data" --run "$run" --overwrite --encoder "$encoder" --model.hidden=64 --model.num_layers=2 --model.num_heads=2 \
      "${extra[@]}" --model.max_len=200 --model.item_dim=64 --model.feature_dim=16 --model.dropout=0.2 --model.attention_dropout=0.2 \
      --optim.peak_lr=1e-3 --optim.weight_decay=0 --batch.global_users=32 --train.epochs=30 --train.seed="$seed" --metric NDCG@10 >/dev/null
    echo "$start $(date +%s.%N)" > "$run/wall_s"
  done
done
.venv/bin/python bench/quality_table.py "$output" --encoders "$encoders" --seeds "$seeds"
