"""Prints the table of bench/cached_states.sh and writes cached_states.json beside the runs."""
import argparse
import json
import pathlib


def steps_of(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["kind"] == "train"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("arms", nargs="+", help="ADAPTER-off, then its cached forms")
    args = parser.parse_args()
    rows, base = {}, {}
    print(f"{'adapter':10} {'states':8} {'steps':>5} {'step_ms':>9} {'encoder_ms':>10} {'samples/s':>10} {'ratio':>6} {'loss difference':>15}")
    for arm in args.arms:
        kind, cache = arm.rsplit("-", 1)
        steps = steps_of(args.output / arm)
        seconds = sorted(s["seconds"] for s in steps)
        # the median step: the first ones also wait for the disk and for memory
        row = {"steps": len(steps), "step_s": seconds[len(seconds) // 2], "encoder_s": sum(s["encoder_s"] for s in steps) / len(steps),
               "samples_per_step": 8, "losses": [s["loss_nats"] for s in steps]}
        if cache == "off":
            base[kind] = row
        row["loss_difference"] = max(abs(a - b) for a, b in zip(row["losses"], base[kind]["losses"], strict=True))
        row["throughput_ratio"] = base[kind]["step_s"] / row["step_s"]
        rows[arm] = row
        print(f"{kind:10} {cache:8} {row['steps']:5} {1e3 * row['step_s']:9.2f} {1e3 * row['encoder_s']:10.3f} {8 / row['step_s']:10.1f}"
              f" {row['throughput_ratio']:6.1f} {row['loss_difference']:15.2e}")
    for row in rows.values():
        del row["losses"]
    (args.output / "cached_states.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
