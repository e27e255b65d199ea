#!/usr/bin/env bash
# What CI cannot check: CUDA and NCCL, their parity with the CPU and their speed, on a machine with an NVIDIA GPU. Not part of ctest.
# Needs scripts/setup.sh --cuda. Usage: tests/gpu/run.sh [BUILD_DIR]; without BUILD_DIR build/release is configured and built first.
#   1. the plug-in loads and sees the devices; more ranks than devices are refused
#   2. with two devices: every collective, type and size of the shared tests gives its closed-form answer on one rank per device
#   3. pre-training of the five encoders, and an alignment with questions asked, on cpu and cuda with equal seeds: losses of the first 20 steps
#   4. a cuda run goes on from its checkpoint, is verified, evaluated and exported; with two devices the same on two ranks, also in parts
#   5. speed: one JSON line each
# One line PASS or FAIL for each; exit 1 if any failed, 2 where there is no GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
root=$PWD
# shellcheck source=scripts/mpi_env.sh
source scripts/mpi_env.sh
# shellcheck source=tests/system/tiny_data.sh
source tests/system/tiny_data.sh

refuse() { echo "REFUSED: $*" >&2; exit 2; }
command -v nvidia-smi >/dev/null || refuse "no NVIDIA driver on this machine (nvidia-smi is not there); nothing was checked"
devices=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true
[ "$devices" -ge 1 ] || refuse "nvidia-smi lists no device; nothing was checked"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

if [ $# -ge 1 ]; then
  build=$(cd "$1" && pwd) || refuse "build directory $1 is not there"
else
  build=$root/build/release
  { cmake --preset release && cmake --build --preset release; } >/tmp/uqa-gpu-build.$$ 2>&1 || { tail -n 40 /tmp/uqa-gpu-build.$$; echo "FAIL build"; exit 1; }
  rm -f /tmp/uqa-gpu-build.$$
fi
uqa=$build/uqa
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

failures=0
pass() { echo "PASS $*"; }
fail() { failures=$((failures + 1)); echo "FAIL $*"; }
# check NAME COMMAND...: shows the end of what a command says only where it fails.
check() {
  local name=$1
  shift
  if "$@" >log.txt 2>&1; then pass "$name"; else fail "$name"; tail -n 20 log.txt; return 1; fi
}
# same_losses NAME RUN RUN: losses of the first 20 steps, relative. The first has seen no update; behind it AdamW makes more of rounding.
same_losses() {
  local name=$1
  if python3 - "$2" "$3" <<'PYTHON'
import json, sys
losses = []
for run in sys.argv[1:]:
    records = [json.loads(line) for line in open(run + "/metrics.jsonl")]
    losses.append([r["loss_nats"] for r in records if r["kind"] == "train"][:20])
a, b = losses
assert len(a) == len(b) == 20, f"{len(a)} and {len(b)} steps instead of 20"
differences = [abs(x - y) / max(abs(x), 1e-9) for x, y in zip(a, b)]
print(f"  first step {differences[0]:.1e}, largest of 20 {max(differences):.1e}, last loss {a[-1]:.5f} and {b[-1]:.5f}")
assert differences[0] < 1e-4 and max(differences) < 1e-3, f"losses differ: {list(zip(a, b))}"
PYTHON
  then pass "$name"; else fail "$name"; fi
}

check "doctor on one rank" "$uqa" doctor --device=cuda || exit 1  # without it nothing else can pass
# NCCL refuses two ranks on one device; so does uqa, and says so.
over=$((devices + 1))
if mpirun -np "$over" "$uqa" doctor --device=cuda >log.txt 2>&1; then
  fail "more ranks than devices are refused: they were accepted"
elif grep -q "CUDA devices that they see = $devices" log.txt; then
  pass "more ranks than devices are refused"
else
  fail "more ranks than devices are refused: the number of devices is not named"
  tail -n 5 log.txt
fi
if [ "$devices" -ge 2 ]; then
  for np in 2 "$devices"; do check "collectives on $np ranks" mpirun -np "$np" "$build/tests/gpu/collectives_cuda" "$build/libuqa_nccl.so"; done
else
  echo "SKIP collectives, two ranks: one device, no group of several ranks can be made here"
fi

make_tiny_log log 80
check "data" "$uqa" import --schema "$root/recipes/ml-100k.schema.json" --input log/tiny.inter log/tiny.item --output data || exit 1
check "questions" "$uqa" questions --data data --output questions --train 280 --test 84 || exit 1
small=(--model.hidden=32 --model.num_heads=2 --model.item_dim=32 --model.feature_dim=8 --model.max_len=32 --batch.global_users=16 --train.epochs=20 --train.max_steps=20
  --train.log_every_steps=1 --train.num_threads=2 "--data.split=files:questions/users_train.txt,questions/users_valid.txt")
for encoder in sasrec hstu gru4rec mamba2 trm_plus; do
  check "pretrain $encoder on cpu" "$uqa" pretrain --data data --run "cpu-$encoder" --encoder "$encoder" "${small[@]}" || continue
  check "pretrain $encoder on cuda" "$uqa" pretrain --data data --run "cuda-$encoder" --encoder "$encoder" "${small[@]}" --device=cuda || continue
  same_losses "parity of $encoder" "cpu-$encoder" "cuda-$encoder"
  if [ "$devices" -ge 2 ]; then
    for shard in none optimizer full; do
      run=two-$encoder-$shard
      check "pretrain $encoder on two ranks, shard=$shard" mpirun -np 2 "$uqa" pretrain --data data --run "$run" --encoder "$encoder" "${small[@]}" --device=cuda --parallel.shard="$shard" &&
        same_losses "parity of $encoder on two ranks, shard=$shard" "cpu-$encoder" "$run"
    done
    check "pretrain $encoder on two ranks, tp" mpirun -np 2 "$uqa" pretrain --data data --run "two-$encoder-tp" --encoder "$encoder" "${small[@]}" --device=cuda --parallel.tp=2 &&
      same_losses "parity of $encoder on two ranks, tp" "cpu-$encoder" "two-$encoder-tp"
  fi
done
check "bf16 on cuda" "$uqa" pretrain --data data --run bf16 "${small[@]}" --train.dtype=bf16 --device=cuda
check "recomputed layers on cuda" "$uqa" pretrain --data data --run recompute "${small[@]}" --memory.recompute=layers --device=cuda && same_losses "parity of recomputed layers" cuda-trm_plus recompute
check "metrics name the device's peak memory" grep -q '"peak_device_bytes"' cuda-trm_plus/metrics.jsonl

llm=$root/tests/fixtures/llm/qwen2-tiny
align=(--data data --questions questions --encoder-run cpu-trm_plus --llm "$llm" --batch.global_users=4 --train.epochs=20 --train.max_steps=20 --train.log_every_steps=1
  --train.num_threads=2 --eval.every=10 --eval.max_questions=20)
for freeze in encoder,llm llm adapter; do
  name="align, frozen: $freeze" tag=${freeze//,/-} lora=4
  [ "$freeze" != adapter ] || lora=0  # the whole LLM is trained
  options=("${align[@]}" --freeze="$freeze" --lora.rank="$lora")
  check "$name on cpu" "$uqa" align "${options[@]}" --run "cpu-align-$tag" || continue
  check "$name on cuda" "$uqa" align "${options[@]}" --run "cuda-align-$tag" --device=cuda || continue
  same_losses "parity of $name" "cpu-align-$tag" "cuda-align-$tag"
  if [ "$devices" -ge 2 ]; then
    check "$name on two ranks" mpirun -np 2 "$uqa" align "${options[@]}" --run "two-align-$tag" --device=cuda && same_losses "parity of $name on two ranks" "cpu-align-$tag" "two-align-$tag"
  fi
done

# The same weights answer alike: rules may differ where two options are equal but for rounding.
for device in cpu cuda; do
  for prompt in soft text; do
    check "evaluate $prompt on $device" "$uqa" evaluate --run cpu-align-encoder-llm --data data --prompt "$prompt" --output "eval-$device-$prompt" --device="$device" --max_new_tokens=4
  done
done
for prompt in soft text; do
  if python3 - "eval-cpu-$prompt" "eval-cuda-$prompt" <<'PYTHON'
import json, sys
a, b = [[json.loads(line) for line in open(d + "/predictions.jsonl")] for d in sys.argv[1:]]
assert len(a) == len(b) > 0
scores = [(x, y) for p, q in zip(a, b) for key in p if key.endswith("_nats") and isinstance(p[key], list) for x, y in zip(p[key], q[key])]
assert scores, "no option scores in predictions.jsonl"
worst = max(abs(x - y) / max(1, abs(x)) for x, y in scores)
print(f"  largest difference of {len(scores)} scores {worst:.1e}")
assert worst < 1e-3
PYTHON
  then pass "parity of evaluation, prompt $prompt"; else fail "parity of evaluation, prompt $prompt"; fi
done

# A run that lost what came after step 10 goes on from there, on either device.
again=(--data data --run resumed "${small[@]}" --checkpoint.every_steps=10 --checkpoint.keep=3)
lose_half() { rm -r resumed/checkpoints/step-20 && echo step-10 > resumed/checkpoints/latest; }
check "checkpoints of a cuda run" "$uqa" pretrain "${again[@]}" --device=cuda
for device in cuda cpu; do
  check "a cuda run goes on on $device" lose_half && check "the rest on $device" "$uqa" pretrain "${again[@]}" --device="$device" && same_losses "parity of a run that went on on $device" cpu-trm_plus resumed
done
check "verify on cuda" "$uqa" verify --run cuda-trm_plus --device=cuda --output verify.json
check "export of a cuda run" "$uqa" export --run cuda-align-encoder-llm --output exported --data data

for encoder in sasrec hstu gru4rec mamba2 trm_plus; do
  for dtype in float32 bf16; do
    check "bench step $encoder $dtype" "$uqa" bench step --encoder "$encoder" --dtype "$dtype" --device=cuda --users 32 --items 50000 --model.hidden=512 --model.num_layers=4 --model.num_heads=4 \
      --model.item_dim=128 && grep '^{' log.txt
  done
done
if [ "$devices" -ge 2 ]; then
  check "bench collectives" mpirun -np "$devices" "$uqa" bench collectives --device=cuda --sizes 1024 1048576 67108864 268435456 && grep '^{' log.txt
fi
[ "$failures" -eq 0 ] || { echo "FAIL: $failures of the checks above"; exit 1; }
echo "PASS: all"
