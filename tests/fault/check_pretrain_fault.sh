#!/usr/bin/env bash
# A training job that loses a rank in the middle: one is killed with SIGKILL, or stops calling (SIGSTOP). The job must end by itself, say why,
# and leave no process behind.
# Usage: check_pretrain_fault.sh UQA SOURCE_DIR kill|stop
set -uo pipefail
uqa=$1 source=$2 mode=$3
# shellcheck source=scripts/mpi_env.sh
source "$source/scripts/mpi_env.sh"
# shellcheck source=tests/system/tiny_data.sh
source "$source/tests/system/tiny_data.sh"
export OMP_NUM_THREADS=1
work=$(mktemp -d)
job=
cleanup() {
  if [ -n "$job" ]; then kill -KILL "$job" "${ranks[@]}" 2>/dev/null; fi
  rm -rf "$work"
}
ranks=()
trap cleanup EXIT
cd "$work" || exit 1
mkdir tmp
export TMPDIR=$work/tmp
fail() {
  echo "FAILED: $*"
  sed 's/^/  /' err.txt | tail -n 30
  exit 1
}

make_tiny_log log 60
"$uqa" import --schema "$source/recipes/ml-100k.schema.json" --input log/tiny.inter log/tiny.item --output data >out.txt 2>err.txt || fail "import"

# No epoch's end comes into sight; a step takes milliseconds.
mpirun -np 2 "$uqa" pretrain --data data --run run --model.hidden=16 --model.num_heads=2 --model.item_dim=8 --model.feature_dim=4 --model.max_len=16 \
  --data.split=ratio:0.8 --train.epochs=1000000 --train.log_every_steps=1 --checkpoint.every_steps=1000000 --comm.timeout_s=4 >out.txt 2>err.txt &
job=$!

num_records() { cat run/metrics.jsonl 2>/dev/null | wc -l; }

# In the middle: both ranks are known and steps are being made.
for _ in $(seq 1200); do
  [ "$(num_records)" -ge 3 ] && break
  kill -0 "$job" 2>/dev/null || { job=; fail "the job ended before it was hurt"; }
  sleep 0.1
done
[ "$(num_records)" -ge 3 ] || fail "no step was made"
victim=
for pid in $(pgrep -P "$job"); do
  rank=$(tr '\0' '\n' < "/proc/$pid/environ" | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')
  [ -n "$rank" ] || continue
  ranks+=("$pid")
  [ "$rank" = 1 ] && victim=$pid
done
[ ${#ranks[@]} -eq 2 ] && [ -n "$victim" ] || fail "ranks found: ${ranks[*]}, two were expected"

if [ "$mode" = kill ]; then kill -KILL "$victim"; else kill -STOP "$victim"; fi
limit_s=60
for ((i = 0; i < limit_s * 10; ++i)); do
  kill -0 "$job" 2>/dev/null || break
  sleep 0.1
done
! kill -0 "$job" 2>/dev/null || fail "the job did not end within $limit_s s"
wait "$job"
code=$?
job=
if [ "$mode" = kill ]; then
  [ "$code" -eq 137 ] || fail "exit code = $code, must be 137 (SIGKILL)"
  grep -q 'signal 9' err.txt || fail "nothing says that a rank was killed"
else
  [ "$code" -eq 4 ] || fail "exit code = $code, must be 4 (communication)"
  lines=$(grep -c '^uqa: ' err.txt)
  [ "$lines" -eq 1 ] || fail "uqa lines = $lines, must be 1"
  grep -Eq '^uqa: rank 0: .* on axis .*, sequence [0-9]+, has waited .*comm.timeout_s = 4.*missing ranks: 1 ' err.txt || fail "the missing rank is not named"
fi
for pid in "${ranks[@]}"; do
  for _ in $(seq 50); do
    [ -d "/proc/$pid" ] && ! grep -q '^State:.*Z' "/proc/$pid/status" 2>/dev/null || break
    sleep 0.1
  done
  if [ -r "/proc/$pid/cmdline" ] && tr '\0' ' ' < "/proc/$pid/cmdline" | grep -q 'pretrain --data data --run run'; then fail "rank with pid $pid outlives the job"; fi
done
# What was written before is whole: every line of the metrics is a record.
tail -n 1 run/metrics.jsonl | grep -q '^{.*}$' || fail "the last record is cut"
echo "a rank that is hurt ($mode) ends the job: code $code"
