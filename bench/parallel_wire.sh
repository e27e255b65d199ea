#!/usr/bin/env bash
# Bytes on the wire and memory of a pre-training step with the published tables and backbone on 4 ranks: the program's counters, the closed
# formula, and Open MPI's own monitoring as a witness. Needs about 10 GB of memory in all.
# Usage: bench/parallel_wire.sh [--ranks 4] [--steps 3] [--uqa build/release/uqa] [--output build/parallel_wire]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ranks=4
steps=3
uqa=build/release/uqa
output=build/parallel_wire
while [ $# -gt 0 ]; do
  case "$1" in
    --ranks) ranks=$2; shift 2 ;;
    --steps) steps=$2; shift 2 ;;
    --uqa) uqa=$2; shift 2 ;;
    --output) output=$2; shift 2 ;;
    -h|--help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "parallel_wire.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
done
scripts/setup.sh
cmake --preset release >/dev/null
[ "$uqa" != build/release/uqa ] || cmake --build --preset release --target uqa -- --quiet
source scripts/mpi_env.sh

model=(--catalogue published --encoder trm_plus --users 4 --model.hidden=512 --model.num_layers=4 --model.num_heads=4 --model.inner=1536
       --model.max_len=512 --model.item_dim=128 --model.feature_dim=64 --num_threads=1)
mkdir -p "$output/monitoring"
rm -f "$output"/monitoring/*
"$uqa" bench step "${model[@]}" --steps "$steps" >"$output/one.json"
mpirun -np "$ranks" --oversubscribe --bind-to none --mca pml_monitoring_enable 1 --mca pml_monitoring_enable_output 3 \
  --mca pml_monitoring_filename "$output/monitoring/rank" "$uqa" bench step "${model[@]}" --steps "$steps" >"$output/sharded.json"
python3 bench/parallel_wire_table.py "$output" "$ranks"
