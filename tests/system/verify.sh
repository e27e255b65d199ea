#!/usr/bin/env bash
# uqa verify: the same losses on every layout of four ranks, for an encoder and for an alignment; what cannot be is named; a difference is found.
# Usage: verify.sh UQA SOURCE_DIR
set -euo pipefail
uqa=$1 source=$2
# shellcheck source=scripts/mpi_env.sh
source "$source/scripts/mpi_env.sh"
# shellcheck source=tests/system/tiny_data.sh
source "$source/tests/system/tiny_data.sh"
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "FAILED: $*"; cat ./*.txt; exit 1; }

make_tiny_log log 60
"$uqa" import --schema "$source/recipes/ml-100k.schema.json" --input log/tiny.inter log/tiny.item --output data >/dev/null
"$uqa" questions --data data --output questions --train 140 --test 56 >/dev/null
encoder=(--encoder trm_plus --model.hidden=16 --model.num_layers=2 --model.item_dim=16 --model.feature_dim=4 --model.max_len=16 --batch.global_users=16 --train.num_threads=1
         --parallel.table_min_rows=4 --data.split=ratio:0.8)
"$uqa" pretrain --data data --run four-heads "${encoder[@]}" --model.num_heads=4 --train.epochs=2 --optim.peak_lr=1e-2 >/dev/null 2>&1
"$uqa" pretrain --data data --run two-heads "${encoder[@]}" --model.num_heads=2 --train.epochs=1 >/dev/null 2>&1
"$uqa" align --data data --questions questions --encoder-run four-heads --llm "$source/tests/fixtures/llm/qwen2-tiny" --run aligned --lora.rank=4 --train.epochs=1 \
  --batch.global_users=16 --train.num_threads=1 >/dev/null 2>&1

mpirun -np 4 "$uqa" verify --run four-heads --tp 1,2,4 --output four.json > four.txt 2>&1 || fail "four heads"
[ ! -e four-heads/verify ] || fail "the scratch directory is left"
mpirun -np 4 "$uqa" verify --run two-heads --tp 2,4 --tables sharded --output two.json > two.txt 2>&1 || fail "two heads"
mpirun -np 2 "$uqa" verify --run aligned --tp 1,2 --output aligned.json > aligned.txt 2>&1 || fail "alignment"
status=0
mpirun -np 4 "$uqa" verify --run four-heads --tp 1 --tolerance 1e-13 > strict.txt 2>&1 || status=$?
[ "$status" = 5 ] && grep -q "differ by up to" strict.txt || fail "rounding was not found: $status"
status=0
mpirun -np 2 "$uqa" verify --run four-heads --tp 1,3 > three.txt 2>&1 || status=$?
[ "$status" = 2 ] && grep -q "3, which does not divide the 2 ranks" three.txt || fail "3 of 2 ranks: $status"

python3 - <<'PYTHON'
import json

def load(name):
    with open(name) as file:
        return json.load(file)

four, two, aligned = load("four.json"), load("two.json"), load("aligned.json")
assert [l["layout"] for l in four["layouts"]] == ["one-rank"] + [f"dp{4 // tp}-tp{tp}-{t}" for tp in (1, 2, 4) for t in ("replicated", "sharded")], four
assert all(len(l["losses_nats"]) == 3 and not l["refused"] for l in four["layouts"]), four
assert four["worst_relative_difference"] <= 1e-4 and four["layouts"][0]["losses_nats"][0] > 1, four
assert len(set(four["layouts"][0]["losses_nats"])) == 3, "the weights do not move"
by_name = {l["layout"]: l for l in two["layouts"]}
assert not by_name["dp2-tp2-sharded"]["refused"] and "2" in by_name["dp1-tp4-sharded"]["refused"], two
assert [l["layout"] for l in aligned["layouts"]] == ["one-rank", "dp2-tp1-replicated", "dp1-tp2-replicated"], aligned
assert all(len(l["losses_nats"]) == 3 for l in aligned["layouts"]), aligned
PYTHON
echo "verify passed"
