"""One line of bench/planner.sh: planned and real peak memory and time. Refuses a run whose parameters or FLOPs are not the planned ones."""
import json
import pathlib
import sys

plan_file, run, start, end, name = sys.argv[1:]
plan = json.loads(pathlib.Path(plan_file).read_text())["runs"][0]["stages"][0]
run = pathlib.Path(run)
info, result = (json.loads((run / f).read_text()) for f in ("run.json", "result.json"))
for key in ("tables", "projections", "backbone", "total"):
    assert plan["parameters"][key] == info["parameters"][key], (key, plan["parameters"][key], info["parameters"][key])
assert abs(plan["flops"]["total"] / result["flops"] - 1) < 1e-9, (plan["flops"]["total"], result["flops"])
peak = max(json.loads(line)["peak_rss_bytes"] for line in (run / "metrics.jsonl").read_text().splitlines() if "peak_rss_bytes" in line)
planned, seconds, took = plan["memory_bytes_per_rank"]["total"], plan["seconds"], float(end) - float(start)
mib = 1 << 20
print(f"{name:<34} {planned / mib:14.0f} {peak / mib:14.0f} {planned / peak - 1:+8.1%} {seconds:12.1f} {took:12.1f} {seconds / took - 1:+8.1%}")
