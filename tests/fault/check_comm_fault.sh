#!/usr/bin/env bash
# Runs comm_fault_program under mpirun and checks how the job ends.
# Usage: check_comm_fault.sh PROGRAM NP MODE EXIT_CODE LINES [PATTERN]
#   EXIT_CODE  what mpirun must return
#   LINES      how many lines that begin with "uqa: " must be on stderr (or "any")
#   PATTERN    extended regular expression that one of them must match
set -uo pipefail
program=$1 np=$2 mode=$3 want_code=$4 want_lines=$5 pattern=${6:-}
limit_s=25

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/pids" "$work/tmp"

begin=$SECONDS
TMPDIR=$work/tmp OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 \
  timeout "$limit_s" mpirun -np "$np" --oversubscribe --bind-to none "$program" "$mode" "$work/pids" > "$work/out" 2> "$work/err"
code=$?
took=$((SECONDS - begin))

failures=0
fail() { echo "FAIL: $*"; failures=1; }

[ "$code" -eq "$want_code" ] || fail "exit code = $code after $took s, must be $want_code"
[ "$took" -lt "$limit_s" ] || fail "took $took s, must be under $limit_s"
lines=$(grep -c '^uqa: ' "$work/err")
[ "$want_lines" = any ] || [ "$lines" -eq "$want_lines" ] || fail "uqa lines = $lines, must be $want_lines"
[ -z "$pattern" ] || grep -E '^uqa: ' "$work/err" | grep -Eq "$pattern" || fail "no uqa line matches '$pattern'"

[ "$(ls "$work/pids" | wc -l)" -eq "$np" ] || fail "ranks started = $(ls "$work/pids" | wc -l), must be $np"
sleep 0.2
for pid in $(ls "$work/pids"); do
  if [ -r "/proc/$pid/cmdline" ] && tr '\0' ' ' < "/proc/$pid/cmdline" | grep -q "$work/pids"; then fail "rank with pid $pid outlives the job"; fi
done
left=$(find "$work/tmp" -name 'uqa-heartbeat-*' | wc -l)
[ "$left" -eq 0 ] || fail "heartbeat directories left behind = $left, must be 0"

if [ "$failures" -ne 0 ]; then
  echo "--- stdout"; cat "$work/out"
  echo "--- stderr"; cat "$work/err"
fi
exit "$failures"
