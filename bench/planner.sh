#!/usr/bin/env bash
# The planner against reality on this machine: eight configurations, peak memory and time of the planned and of the real run.
# Usage: bench/planner.sh [--only N] [--uqa PROGRAM] [--output build/planner]     (--only N: the first N configurations)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
only=8 uqa=$root/build/release/uqa output=$root/build/planner
while [ $# -gt 0 ]; do
  case "$1" in
    --only) only=$2; shift 2 ;;
    --uqa) uqa=$(realpath "$2"); shift 2 ;;
    --output) output=$(realpath -m "$2"); shift 2 ;;
    -h|--help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
    *) echo "planner.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
done
cd "$root"
source scripts/mpi_env.sh
mkdir -p "$output"
[ -e "$output/data/manifest.json" ] || "$uqa" synth --output "$output/data" --users 3000 --items 20000 --interactions 450000 --oracle_positions 0 > "$output/synth.json"

# encoder hidden layers item_dim users_a_step
configurations=("trm_plus 64 2 64 32" "trm_plus 256 2 128 16" "sasrec 128 2 64 32" "hstu 128 2 64 32" "gru4rec 64 1 64 32" "mamba2 64 2 64 32" "trm_plus 128 4 128 64" "sasrec 256 4 128 16")
printf '%-34s %14s %14s %8s %12s %12s %8s\n' configuration plan_MiB real_MiB error plan_s real_s error
for i in $(seq 0 $((only - 1))); do
  read -r encoder hidden layers item_dim users <<< "${configurations[$i]}"
  study=$output/$i.ini
  printf '[study]\ndata = %s\ndirectory = %s\n[axes]\nwidth = %s\n[pretrain]\nencoder = %s\nmodel.num_layers = %s\nmodel.item_dim = %s\nmodel.max_len = 128\nbatch.global_users = %s\ndata.split = ratio:0.9\ntrain.epochs = 1\n' \
    "$output/data" "$output/$i" "$hidden" "$encoder" "$layers" "$item_dim" "$users" > "$study"
  rm -rf "${output:?}/$i"
  "$uqa" study plan --study "$study" --calibrate --output "$output/plan-$i.json" --overwrite > "$output/plan-$i.txt"
  start=$(date +%s.%N)
  "$uqa" study run --study "$study" > "$output/run-$i.txt" 2>&1
  end=$(date +%s.%N)
  "$root/.venv/bin/python" bench/planner_table.py "$output/plan-$i.json" "$output/$i/runs/w$hidden/pretrain" "$start" "$end" "$encoder w$hidden l$layers d$item_dim b$users"
done
