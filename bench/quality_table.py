"""Prints the table of bench/quality.sh and writes quality.json beside the runs.

Reference figures: the reference implementation's own modules in the same setting, mean and standard deviation over 3 seeds.
"""
import argparse
import json
import math
import pathlib
import statistics

REFERENCE = {  # NDCG@10 mean, sd; Recall@10 mean, sd; seconds
    "trm_plus": (0.0555, 0.0037, 0.114, 0.013, 260),
    "sasrec": (0.0467, 0.0035, 0.098, 0.009, 275),
    "hstu": (0.0526, 0.0009, 0.113, 0.003, 240),
    "gru4rec": (0.0579, 0.0038, 0.124, 0.008, 280),
}
REFERENCE_SEEDS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--encoders", default="trm_plus,sasrec,hstu,gru4rec,mamba2")
    parser.add_argument("--seeds", default="1,2,3")
    args = parser.parse_args()
    seeds = [int(s) for s in args.seeds.split(",")]
    rows, failed = {}, []
    print(f"{'encoder':10} {'NDCG@10':>8} {'sd':>7} {'reference':>9} {'sd':>7} {'least':>8} {'Recall@10':>9} {'seconds':>8} {'limit':>6}")
    for encoder in args.encoders.split(","):
        results = [json.loads((args.output / f"{encoder}-{s}" / "result.json").read_text()) for s in seeds]
        walls = []
        for s in seeds:
            begin, end = map(float, (args.output / f"{encoder}-{s}" / "wall_s").read_text().split())
            walls.append(end - begin)
        ndcg = [r["test"]["NDCG@10"] for r in results]
        recall = [r["test"]["Recall@10"] for r in results]
        mean, sd = statistics.mean(ndcg), statistics.stdev(ndcg) if len(ndcg) > 1 else 0.0
        row = {"ndcg10": ndcg, "ndcg10_mean": mean, "ndcg10_sd": sd, "recall10": recall, "wall_s": walls}
        if encoder not in REFERENCE:  # the reference's Mamba2 runs on CUDA only: there is no figure to compare with
            rows[encoder] = row
            print(f"{encoder:10} {mean:8.4f} {sd:7.4f} {'-':>9} {'-':>7} {'-':>8} {statistics.mean(recall):9.4f} {statistics.mean(walls):8.1f} {'-':>6}")
            continue
        ref_mean, ref_sd, ref_recall, _, ref_s = REFERENCE[encoder]
        least = ref_mean - 2 * math.sqrt(ref_sd**2 / REFERENCE_SEEDS + sd**2 / len(ndcg))
        wall, limit = statistics.mean(walls), ref_s / 2
        good = mean >= least and wall <= limit
        if not good:
            failed.append(encoder)
        rows[encoder] = row | {"least": least, "reference_ndcg10_mean": ref_mean, "reference_ndcg10_sd": ref_sd, "reference_recall10_mean": ref_recall,
                               "limit_s": limit, "good": good}
        print(f"{encoder:10} {mean:8.4f} {sd:7.4f} {ref_mean:9.4f} {ref_sd:7.4f} {least:8.4f} {statistics.mean(recall):9.4f} {wall:8.1f} {limit:6.0f}"
              f"  {'no worse' if good else 'WORSE'}")
    (args.output / "quality.json").write_text(json.dumps({"seeds": seeds, "encoders": rows}, indent=1) + "\n")
    if failed:
        raise SystemExit(f"quality: below the reference or too slow: {', '.join(failed)}")


if __name__ == "__main__":
    main()
