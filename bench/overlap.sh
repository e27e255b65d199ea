#!/usr/bin/env bash
# Does communication hide behind computation? The same global batch on 2 ranks with 1 thread each against 1 rank with 2 threads, alternately; one JSON line.
# Usage: bench/overlap.sh [--pairs 3] [--steps 10] [--uqa build/release/uqa]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pairs=3 steps=10 uqa=build/release/uqa
while [ $# -gt 0 ]; do
  case "$1" in
    --pairs) pairs=$2; shift 2 ;;
    --steps) steps=$2; shift 2 ;;
    --uqa) uqa=$2; shift 2 ;;
    -h|--help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
    *) echo "overlap.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
done
if [ "$uqa" = build/release/uqa ]; then
  scripts/setup.sh
  cmake --preset release >/dev/null
  cmake --build --preset release --target uqa -- --quiet
fi
source scripts/mpi_env.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=(--encoder trm_plus --items 50000 --model.hidden=512 --model.num_layers=4 --model.num_heads=4 --model.item_dim=128 --dtype bf16 --steps "$steps")
for ((i = 0; i < pairs; ++i)); do
  mpirun -np 1 --bind-to none "$uqa" bench step "${model[@]}" --users 8 --num_threads 2 >"$work/one-$i.json"
  mpirun -np 2 --bind-to none "$uqa" bench step "${model[@]}" --users 4 --num_threads 1 >"$work/two-$i.json"
done
python3 - "$work" "$pairs" <<'PY'
import json, statistics, sys
directory, pairs = sys.argv[1], int(sys.argv[2])
read = lambda name: [json.load(open(f"{directory}/{name}-{i}.json")) for i in range(pairs)]
one, two = read("one"), read("two")
ratios = [b["interactions_per_s"] / a["interactions_per_s"] for a, b in zip(one, two)]
print(json.dumps({
    "bench": "overlap", "throughput_of_2_ranks_1_thread_over_1_rank_2_threads": statistics.median(ratios), "of_each_pair": ratios,
    "interactions_per_s_one_rank": [a["interactions_per_s"] for a in one], "interactions_per_s_two_ranks": [b["interactions_per_s"] for b in two],
    "interactions_per_step": [one[0]["interactions_per_step_and_rank"], 2 * two[0]["interactions_per_step_and_rank"]],
    "comm_exposed_fraction": [b["comm_exposed_fraction"] for b in two], "comm_bytes_per_step_and_rank": two[0]["comm_bytes_per_step_and_rank"]}))
PY
