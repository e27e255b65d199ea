#!/usr/bin/env python3
"""Compares counters, formula and Open MPI's monitoring of bench/parallel_wire.sh; prints one JSON line, fails when a bound is missed.

Usage: parallel_wire_table.py OUTPUT_DIRECTORY RANKS
"""
import glob
import json
import sys

WARM_UP_STEPS = 2  # of `uqa bench step`
MOST_DIFFERENCE = 0.05
MOST_TABLE_SHARE = 1 / 20  # of what all-reducing the gradients of all tables sends
ALL_REDUCED_TABLE_BYTES = 726e6
MOST_MEMORY_SHARE = 0.45


def monitored_bytes(pattern):
    """Bytes that the ranks sent, by Open MPI's point-to-point monitoring: lines `I|E source destination bytes ...`."""
    total = 0
    files = glob.glob(pattern)
    for name in files:
        with open(name, encoding="utf-8") as lines:
            for line in lines:
                fields = line.split()
                if len(fields) > 3 and fields[0] in ("I", "E"):
                    total += int(fields[3])
    if not files or total == 0:
        raise SystemExit(f"parallel_wire: no monitoring in {pattern}; is Open MPI's pml monitoring component there?")
    return total


def main():
    directory, ranks = sys.argv[1], int(sys.argv[2])
    with open(f"{directory}/one.json", encoding="utf-8") as file:
        one = json.load(file)
    with open(f"{directory}/sharded.json", encoding="utf-8") as file:
        sharded = json.load(file)
    steps = sharded["steps"] + WARM_UP_STEPS
    counted = sharded["comm_bytes_per_step_and_rank"]
    formula = sharded["comm_formula_bytes_per_step_and_rank"]
    counter = sum(counted.values())
    closed = sum(formula.values())
    witness = monitored_bytes(f"{directory}/monitoring/*.prof") / ranks / steps
    table_bytes = counted["tables_and_softmax"]
    figures = {
        "bench": "parallel_wire",
        "ranks": ranks,
        "witness_bytes_per_step_and_rank": witness,
        "counter_bytes_per_step_and_rank": counter,
        "formula_bytes_per_step_and_rank": closed,
        "tables_and_softmax_bytes": table_bytes,
        "tables_and_softmax_formula_bytes": formula["tables"] + formula["softmax"],
        "dense_bytes": counted["dense"],
        "dense_formula_bytes": formula["dense"],
        "tables_and_softmax_share_of_all_reduce": table_bytes / ALL_REDUCED_TABLE_BYTES,
        "peak_rss_bytes_one_rank": one["peak_rss_bytes"],
        "peak_rss_bytes_of_the_largest_rank": sharded["peak_rss_bytes"],
        "memory_share": sharded["peak_rss_bytes"] / one["peak_rss_bytes"],
        "loss_nats_one_rank": one["last_loss_nats"],
        "loss_nats": sharded["last_loss_nats"],
    }
    print(json.dumps(figures))
    checks = {
        "formula against counter": abs(closed / counter - 1) <= MOST_DIFFERENCE,
        "witness against counter": abs(witness / counter - 1) <= MOST_DIFFERENCE,
        "tables and softmax": figures["tables_and_softmax_share_of_all_reduce"] <= MOST_TABLE_SHARE,
        "memory": figures["memory_share"] <= MOST_MEMORY_SHARE,
    }
    missed = [name for name, held in checks.items() if not held]
    if missed:
        raise SystemExit("parallel_wire: missed bounds: " + ", ".join(missed))


if __name__ == "__main__":
    main()
