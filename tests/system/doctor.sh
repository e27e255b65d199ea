#!/usr/bin/env bash
# uqa doctor and uqa bench collectives, alone and under mpirun: what they report, and that findings are warnings.
# Usage: doctor.sh UQA SOURCE_DIR
set -euo pipefail
uqa=$1 source=$2
# shellcheck source=scripts/mpi_env.sh
source "$source/scripts/mpi_env.sh"
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
quick=(--repetitions 1 --bytes 65536)

"$uqa" doctor "${quick[@]}" > alone.txt
grep -q 'one rank: none' alone.txt
grep -Eq '^[0-9]+ warning\(s\)$' alone.txt
"$uqa" doctor --json "${quick[@]}" > alone.json
mpirun -np 2 "$uqa" doctor "${quick[@]}" > two.txt
grep -q all_to_all two.txt
mpirun -np 2 "$uqa" doctor --json "${quick[@]}" > two.json
mpirun -np 4 "$uqa" doctor --json --parallel.tp 2 "${quick[@]}" > four.json
mpirun -np 2 "$uqa" doctor --json --num_threads 4096 "${quick[@]}" > threads.json
core=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*\([0-9]*\).*/\1/p' /proc/self/status)
taskset -c "$core" "$uqa" doctor --json --num_threads 2 "${quick[@]}" > bound.json
mpirun -np 2 "$uqa" bench collectives --sizes 1000 70000 --steps 1 --num_threads 1 > bench.jsonl
"$uqa" bench collectives --ops all_reduce --sizes 1024 --steps 1 --dtype bf16 > one.jsonl

python3 - <<'PYTHON'
import json

def load(name):
    with open(name) as file:
        return json.load(file)

OPS = ["all_reduce", "all_reduce_async", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier"]
alone, two, four = load("alone.json"), load("two.json"), load("four.json")
assert len(alone["ranks"]) == 1 and alone["collectives"] == [], alone
assert alone["versions"]["mpi"] == "none (one process)", alone["versions"]
assert [r["rank"] for r in two["ranks"]] == [0, 1] and two["ranks"][0]["cores"], two["ranks"]
assert "Open MPI" in two["versions"]["mpi"], two["versions"]
assert [row["op"] for row in two["collectives"]] == OPS, two["collectives"]
assert {row["axis"] for row in two["collectives"]} == {"world"}
for row in two["collectives"]:
    assert row["np"] == 2 and row["latency_s"] > 0, row
    if row["op"] != "barrier":
        assert row["bytes"] == 65536 and row["bus_bytes_per_s"] > 0 and row["yardstick"] == "memory copy" and row["fraction"] > 0, row
assert [row["axis"] for row in four["collectives"]] == ["world"] * 7 + ["dp"] * 7 + ["tp"] * 7, four["collectives"]
assert {row["axis"]: row["np"] for row in four["collectives"]} == {"world": 4, "dp": 2, "tp": 2}
assert sum("threads = 4096" in warning for warning in load("threads.json")["warnings"]) == 2, load("threads.json")["warnings"]
bound = load("bound.json")
assert len(bound["ranks"][0]["cores"]) == 1, bound["ranks"]
assert any("--bind-to none" in warning for warning in bound["warnings"]), bound["warnings"]

bench = [json.loads(line) for line in open("bench.jsonl")]
assert [(b["op"], b["bytes"]) for b in bench] == [(op, size) for op in OPS[:-1] for size in (1000, 70000)] + [("barrier", 0)], bench
for b in bench:
    assert b["np"] == 2 and b["dtype"] == "float32" and b["seconds"] > 0, b
    factor = {"all_reduce": 1, "all_reduce_async": 1, "broadcast": 1, "barrier": 0}.get(b["op"], 0.5)  # 2 (n - 1) / n, 1, 0, (n - 1) / n
    assert abs(b["bus_bytes_per_s"] - factor * b["bytes"] / b["seconds"]) <= 1e-6 * b["bus_bytes_per_s"] + 1e-9, b
one = json.loads(open("one.jsonl").read())
assert one["np"] == 1 and one["dtype"] == "bf16" and one["bus_bytes_per_s"] == 0, one
print("doctor passed")
PYTHON
