#!/usr/bin/env python3
"""Writes what `uqa report` reads, in small: a study directory, two evaluations, a comparison. Usage: make_report_data.py DIR

Standard library only. The figures follow known laws with seeded noise; names hold markup on purpose.
"""
import json
import math
import os
import random
import sys

HOSTILE = "<img src=x onerror=alert(1)>"


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def make_run(directory, stage, width, seed, rng):
    info = {"stage": stage, "host": HOSTILE, "num_hosts": 1, "device": "cpu", "host_cores": 2, "threads_per_rank": 2, "mesh": {"world": 1, "dp": 1, "tp": 1},
            "versions": {"uqa": "0.1.0", "compiler": "x"}, "deviations": ["final norm before the adapter", HOSTILE],
            "parameters": {"tables": 1000 * width, "backbone": 24 * width * width, "total": 1000 * width + 24 * width * width},
            "flops": {"convention": "2 a multiply-add"}, "result": {"test": {"loss_nats": 3 + 8 / width}}}
    write(f"{directory}/run.json", json.dumps(info))
    write(f"{directory}/config.ini", f"data = data/synth\nrun = {directory}\n[model]\nhidden = {width}\n[train]\nseed = {seed}\n")
    lines = []
    for step in range(10, 1001, 10):
        lines.append({"kind": "train", "step": step, "loss_nats": 3 + 8 / width + 6 * math.exp(-step / 250) + rng.gauss(0, 0.03), "lr": 1e-3, "seconds": 1.3,
                      "interactions_per_s": 21000 + rng.gauss(0, 900), "data_wait_fraction": 0.02, "comm_exposed_fraction": 0.0, "comm_bytes": 0, "peak_rss_bytes": 300000000,
                      "flops_per_s": 4e10})
        if step % 250 == 0:
            lines.append({"kind": "validation", "step": step, "metric": "ndcg@10", "ndcg@10": 0.06 - 0.2 / width + 1e-5 * step, "seconds": 3})
    write(f"{directory}/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def accuracy(share, n):
    correct = round(share * n)
    p, z = correct / n, 1.96
    center, half = (p + z * z / 2 / n) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
    return {"n": n, "correct": correct, "accuracy": p, "low": center - half, "high": center + half}


def evaluation(prompt, gain, tokens):
    rules = {}
    for rule, factor in (("text", 1), ("letter", 0.1), ("calibrated", 1.3), ("first_token", 0.05)):
        types = {code: accuracy(0.25 + gain * factor * f, 600) for code, f in (("df", 0.9), ("mf", 0.3), ("ip", 0.1), ("ap", 0.8), ("li", 1.6), ("si", 2), ("it", 1.7))}
        rules[rule] = {"types": types, "dimensions": {}, "all": accuracy(0.25 + gain * factor, 4200), "macro": {"accuracy": 0.25 + gain * factor}}
    return {"format": "uqa.evaluation", "version": 1, "prompt": prompt, "questions_digest": "d", "rules": rules, "input_tokens_per_question": tokens, "questions_per_s": 26.0, "details": {}}


def main():
    base = sys.argv[1]
    rng = random.Random(1)
    rows = ["name,encoder,llm,adapter,tokens,width,depth,max_len,fraction,seed,n_backbone,n_total,d_interactions,c_flops,c_flops_no_softmax,loss_nats,metric,acc_df,acc_df_n"]
    for width in (8, 12, 16, 24, 32, 48, 64):
        for fraction in (1, 0.5, 0.25, 0.12, 0.06) if width == 32 else (1,):
            for seed in (1, 2):
                n, d = 24 * width * width, 3e6 * fraction
                total = n + 1000 * width
                loss = (2.1 + 28 / n**0.33 + 90 / d**0.34) * math.exp(rng.gauss(0, 0.002))
                share = 0.25 + 0.4 / (1 + math.exp(2 * (loss - 4)))
                right = sum(rng.random() < share for _ in range(600)) / 600
                rows.append(f"w{width}-f{fraction}-s{seed},sasrec,{HOSTILE},linear,1,{width},2,64,{fraction},{seed},{n},{total},{d},{8 * total * d},{6 * n * d},{loss},0.05,{right},600")
    write(f"{base}/points.csv", "\n".join(rows) + "\n")
    write(f"{base}/study/points.csv", "\n".join(rows) + "\n")
    for width in (8, 32):
        for seed in (1, 2):
            make_run(f"{base}/study/runs/w{width}-s{seed}", "pretrain", width, seed, rng)
    make_run(f"{base}/study/runs/{HOSTILE}", "align", 32, 1, rng)
    arms = []
    for prompt, gain, tokens in (("soft", 0.1, 80.6), ("none", 0.0, 79.6)):
        result = evaluation(prompt, gain, tokens)
        write(f"{base}/eval/{prompt}/result.json", json.dumps(result))
        arms.append({"name": prompt + HOSTILE, "mean": result})
    comparison = {"first": "soft", "second": HOSTILE, "rule": "text", "scope": "all", "questions": 4200, "users": 280, "first_accuracy": 0.35, "second_accuracy": 0.25, "difference": 0.1,
                  "p": 1e-4, "p_holm": 1e-4, "detectable_difference": 0.02}
    write(f"{base}/compare.json", json.dumps({"evaluations": arms, "comparisons": {"format": "uqa.comparison", "version": 1, "comparisons": [comparison]}}))


if __name__ == "__main__":
    main()
