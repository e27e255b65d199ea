#!/usr/bin/env bash
# A study as an array of six over two Slurm nodes: one task is preempted and requeued, one node is lost. All must finish, with the weights of an
# undisturbed run, bit for bit. Then a job of several ranks over both nodes, stopped by its time limit's signal and requeued.
# Usage: study_array.sh UQA SOURCE_DIR
set -uo pipefail
uqa=$1 source=$2
source "$source/scripts/mpi_env.sh"
source "$source/tests/system/tiny_data.sh"
work=$(mktemp -d)
chmod 755 "$work"
cleanup() {
  "$source/tests/slurm/cluster.sh" stop "$work/cluster"
  rm -rf "$work"
}
trap cleanup EXIT
fail() {
  echo "FAILED: $*"
  squeue 2>/dev/null
  scontrol show job 2>/dev/null | grep -E "JobId|JobState|EligibleTime|Requeue|ExitCode"
  scontrol show node 2>/dev/null | grep -E "NodeName|State|Reason"
  tail -n 20 "$work"/*.out "$work"/cluster/slurmctld.log "$work"/study/runs/*/*.log 2>/dev/null
  exit 1
}
# until_true SECONDS WHAT COMMAND...
until_true() {
  local seconds=$1 what=$2
  shift 2
  for ((i = 0; i < 5 * seconds; ++i)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  fail "$what within $seconds s"
}
# hurry JOB: what waits two minutes since it was requeued starts in three seconds. Not at once: slurmd refuses a job whose credential was made in the
# second in which its last one was revoked, and that ends the job ("Job credential revoked").
hurry() {
  local id begin
  while read -r id begin; do
    [ "$begin" != N/A ] && [ $(($(date -d "$begin" +%s) - $(date +%s))) -gt 4 ] && scontrol update jobid="$id" starttime=now+3
  done < <(squeue -h -t PD -r -j "$1" -o "%i %S" 2>/dev/null)
}
cd "$work" || exit 1
export OMP_NUM_THREADS=1 UQA=$uqa SLURM_SUBMIT_DIR=$source

make_tiny_log log 80
"$uqa" import --schema "$source/recipes/ml-100k.schema.json" --input log/tiny.inter log/tiny.item --output data >/dev/null || fail "import"

cat > study.ini <<INI
[study]
name = array
directory = $work/study
data = $work/data
[axes.width]
width = 8, 16, 24
seed = 1, 2
[pretrain]
encoder = sasrec
model.num_heads = 2
model.num_layers = 1
model.item_dim = 8
model.feature_dim = 4
model.max_len = 32
batch.global_users = 8
train.epochs = 240
train.num_threads = 1
checkpoint.every_steps = 20
INI
"$uqa" study run --study study.ini --directory "$work/undisturbed" >undisturbed.out 2>&1 || fail "the undisturbed study: $(tail -n 3 undisturbed.out)"

"$source/tests/slurm/cluster.sh" start "$work/cluster" || fail "no cluster"
source "$work/cluster/env.sh"
export SLURM_SUBMIT_DIR=$source

# No PMIx: refused before anything is submitted.
mkdir -p fake
printf '#!/bin/sh\necho "MPI plugin types are..."\necho "none"\n' > fake/srun
chmod +x fake/srun
PATH=$work/fake:$PATH "$uqa" study run --study study.ini --launcher slurm --sbatch "$source/slurm/study.sbatch" >out.txt 2>err.txt
[ $? = 2 ] && grep -q "^uqa: .*PMIx" err.txt || fail "a Slurm without PMIx was not refused: $(cat err.txt)"
[ -z "$(squeue -h)" ] || fail "something was submitted without PMIx"

cd "$source" || exit 1
"$uqa" study run --study "$work/study.ini" --launcher slurm --sbatch_options "--output=$work/task-%a.out --time=30" > "$work/submit.out" 2>&1 || fail "submit: $(cat "$work/submit.out")"
cd "$work" || exit 1
job=$(sed -n 's/^submitted array job \([0-9]*\):.*/\1/p' submit.out)
[ -n "$job" ] || fail "no job number in: $(cat submit.out)"

# task_on NODE: the array index of a task that runs there and has a checkpoint to resume from.
task_on() {
  local index
  for index in $(squeue -h -t R -j "$job" -w "$1" -o %K); do
    [ -e "$(checkpoint_of "$index")" ] && echo "$index" && return
  done
  return 1
}
checkpoint_of() { # index
  "$source/.venv/bin/python" - "$work/study/runs.json" "$1" <<'PY'
import json, sys
print(json.load(open(sys.argv[1]))["runs"][int(sys.argv[2])]["directories"][0] + "/checkpoints/latest")
PY
}

# Both disturbances at once, while the first four tasks run, two on each node: a machine that is fast enough may have nothing left to disturb a second time.
both_run() { task_on n1 && task_on n2; }
until_true 300 "no task of n1 and of n2 wrote a checkpoint" both_run
preempted=$(squeue -h -t R -j "$job" -w n1 -o %K | tr '\n' ' ')
lost=$(squeue -h -t R -j "$job" -w n2 -o %K | tr '\n' ' ')
# A lost node: n2 goes down under its tasks.
scontrol update nodename=n2 state=down reason=test || fail "n2 was not taken down"
# Preemption: a job of the urgent partition takes all of n1.
urgent=$(sbatch --parsable -p urgent -w n1 --exclusive --output=urgent.out --wrap "sleep 1")
until_true 180 "tasks of the lost node still run" sh -c "! squeue -h -t R -j $job -w n2 | grep -q ."
until_true 300 "nothing was preempted on n1" grep -qi "preempted\|requeu" "$work/cluster/slurmctld.log"
until_true 300 "the urgent job did not end" sh -c "! squeue -h -j $urgent | grep -q ."
scontrol update nodename=n2 state=resume 2>/dev/null  # refused where its slurmd has already reported back
echo "preempted tasks: $preempted, tasks of the lost node: $lost"
[ -n "$preempted" ] && [ -n "$lost" ] || fail "nothing was disturbed"
# Every disturbed task came back to the queue, so none of them had ended before.
for index in $preempted $lost; do
  restarts=$(scontrol show job "${job}_$index" | grep -o "Restarts=[0-9]*" | cut -d= -f2)
  [ "${restarts:-0}" -ge 1 ] || fail "task $index was not requeued"
done

finished() {
  hurry "$job"
  # By results: a job that goes back to the queue is in no list for a moment.
  [ "$(find study/runs -name result.json | wc -l)" = 6 ]
}
until_true 900 "the array did not finish" finished
"$uqa" study status --study study.ini > status.txt 2>&1 || fail "status: $(cat status.txt)"

names=$("$source/.venv/bin/python" -c "import json; print(*[r['name'] for r in json.load(open('$work/study/runs.json'))['runs']])")
[ "$(wc -w <<< "$names")" = 6 ] || fail "the study has not six runs: $names"
compared=0
for name in $names; do
  for file in $(cd undisturbed/runs/"$name" && find . -name model.safetensors); do
    cmp "undisturbed/runs/$name/$file" "study/runs/$name/$file" || fail "$name differs from the undisturbed run"
    compared=$((compared + 1))
  done
done
[ "$compared" = 6 ] || fail "$compared of 6 weights were compared"

# Several ranks over both nodes; the signal comes long before the end, 60 s before the limit of two minutes at the latest.
cd "$source" || exit 1
long=$(sbatch --parsable --nodes=2 --ntasks-per-node=1 --output="$work/ranks.out" --time=30 slurm/pretrain.sbatch --data "$work/data" --run "$work/ranks" --encoder sasrec \
  --model.hidden=8 --model.num_heads=2 --model.num_layers=1 --model.item_dim=8 --model.feature_dim=4 --model.max_len=32 --batch.global_users=8 --train.epochs=240 \
  --train.num_threads=1 --checkpoint.every_steps=20)
cd "$work" || exit 1
until_true 300 "the job of two ranks wrote no checkpoint" test -e ranks/checkpoints/latest
scancel --signal=USR1 "$long"
until_true 300 "the job was not requeued" grep -q "goes back to the queue" ranks.out
again() {
  hurry "$long"
  [ -s ranks/result.json ]
}
until_true 600 "the requeued job did not finish" again
grep -q '"world": *2' ranks/run.json || fail "run.json does not show two ranks"
echo "slurm: six tasks equal the undisturbed runs, preempted: $preempted, lost: $lost"
