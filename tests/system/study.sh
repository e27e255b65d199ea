#!/usr/bin/env bash
# A study from its file to points.csv; what is refused; a stop that saves; what is skipped afterwards.
# Usage: study.sh UQA SOURCE_DIR
set -uo pipefail
uqa=$1 source=$2
source "$source/scripts/mpi_env.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
fail() { echo "FAILED: $*"; exit 1; }
refused() {  # refused CODE PATTERN WORDS...
  local code=$1 pattern=$2
  shift 2
  "$uqa" "$@" >out.txt 2>err.txt
  local got=$?
  [ "$got" = "$code" ] || { cat err.txt; fail "uqa $* ended with $got, not $code"; }
  [ "$(grep -c '^uqa: ' err.txt)" = 1 ] && grep '^uqa: ' err.txt | grep -qE -- "$pattern" || { cat err.txt; fail "uqa $*: no line like $pattern"; }
}

# The whole script in miniature; a second time nothing runs.
"$source/scripts/study.sh" --mini --uqa "$uqa" --output "$work/mini" >mini.txt 2>mini.err || { tail -30 mini.txt mini.err; fail "study.sh --mini"; }
grep -q "8 of 8 runs finished" mini.txt || { cat mini.txt; fail "not every run of the miniature is finished"; }
[ "$(wc -l < mini/runs/points.csv)" = 9 ] || { cat mini/runs/points.csv; fail "points.csv has not a line for each run"; }
head -1 mini/runs/points.csv | grep -q "n_backbone.*d_interactions.*c_flops,c_flops_no_softmax,loss_nats,metric" || fail "columns of points.csv"
cp mini/runs/points.csv before.csv
"$uqa" study run --study mini/mini.ini 2>again.err >/dev/null || fail "a finished study does not run again"
grep -q "nothing to do" again.err || { cat again.err; fail "a finished study ran again"; }
cmp -s before.csv mini/runs/points.csv || fail "points.csv changed"

# Bad input.
study() { printf '[study]\ndata = %s\ndirectory = bad\n%s\n[pretrain]\ntrain.num_threads = 1\n' "mini/data" "$1" > bad.ini; }
study $'[axes]\nwitdh = 8'
refused 2 "did you mean 'width'" study plan --study bad.ini
study $'[axes]\nwidth ='
refused 2 "empty" study run --study bad.ini
study $'[axes]\nwidth = 8, 8'
refused 2 "one name" study run --study bad.ini
study $'budget_flops = 10\n[axes]\nwidth = 8'
refused 2 "no run fits the budget.*raise the budget" study run --study bad.ini
study $'budget_hours = 1\n[axes]\nwidth = 8'
refused 2 "calibrate" study run --study bad.ini
study $'[axes]\nwidth = 7'
refused 2 "run w7, stage pretrain: .*num_heads" study run --study bad.ini
printf '[study]\ndata = mini/data\n[axes]\nwidth = 8\n[pretrain]\ntrain.epoch = 2\n' > bad.ini
refused 2 "train.epoch.*did you mean '--train.epochs'" study plan --study bad.ini
study $'[axes]\nwidth = 8'
refused 2 "no figures of a machine" study plan --study bad.ini
refused 2 "no such file" study plan --study none.ini
refused 2 "needs an action" study
refused 2 "did you mean 'plan'" study plam --study bad.ini
refused 2 "has runs 0 to 0" study run --study bad.ini --index 3
refused 2 "has not been started" study status --study bad.ini
[ ! -e bad ] || fail "a refused study left its directory behind"
sed 's/peak_lr = 4e-3/peak_lr = 5e-3/' mini/mini.ini > changed.ini
refused 2 "has begun with other settings" study run --study changed.ini
# Machines that are not here, with data that is not here.
(cd "$source" && "$uqa" study plan --study recipes/studies/published.ini --hardware recipes/hardware/h100x8.ini --ranks 2048 --directory "$work/none") > plan.txt 2>err.txt || { cat err.txt; fail "plan of the published sizes"; }
grep -q "tables in rows over groups of" plan.txt || { cat plan.txt; fail "the plan names no table group"; }
# Every recipe is a study; alignments are planned with their adapter and LLM.
mkdir -p questions
yes '{}' | head -100 > questions/train.jsonl
for recipe in "$source"/recipes/studies/*.ini; do
  { sed -e "s|^questions = .*|questions = $work/questions|" -e "s|^llm = .*|llm = $source/tests/fixtures/llm/qwen2-tiny|" "$recipe"
    grep -q '^\[data\]' "$recipe" || printf '[data]\nschema = recipes/uqabench.schema.json\nusers = 1000\ninteractions = 50000\n'; } > recipe.ini
  (cd "$source" && "$uqa" study plan --study "$work/recipe.ini" --hardware recipes/hardware/h100x8.ini --directory "$work/none") > plan.txt 2>err.txt || { cat err.txt; fail "plan of $recipe"; }
  grep -q '^total: ' plan.txt || { cat plan.txt; fail "plan of $recipe prints no total"; }
  case "$recipe" in *qa.ini) grep -q ' align ' plan.txt || { cat plan.txt; fail "the plan of qa.ini has no alignment"; } ;; esac
done

# A stop: children save, exit code 75, and the next call goes on. One run by its number, output on the terminal.
printf '[study]\ndata = mini/data\ndirectory = stop\n[axes]\nseed = 1, 2\n[pretrain]\ntrain.epochs = 100000\ntrain.max_steps = 80\ntrain.log_every_steps = 1\nmodel.hidden = 16\ndata.split = ratio:0.9\nbatch.global_users = 400\ntrain.num_threads = 1\n' > stop.ini
"$uqa" study run --study stop.ini >out.txt 2>stop.err &
pid=$!
for _ in $(seq 1200); do [ -s stop/runs/s1/pretrain/metrics.jsonl ] && break; sleep 0.05; done
kill -INT $pid
wait $pid
code=$?
if [ "$code" = 75 ]; then
  [ -e stop/runs/s1/pretrain/checkpoints/latest ] || fail "the stopped run did not save"
  [ ! -e stop/runs/s2 ] || fail "a run was started after the stop"
else
  cat stop.err
  fail "a stopped study ended with $code, not 75"
fi
"$uqa" study run --study stop.ini --index 0 >out.txt 2>index.err || { cat index.err; fail "the stopped run does not go on"; }
grep -q "resumed from" index.err || { cat index.err; fail "the stopped run started anew"; }
grep -q '"steps": 80' out.txt || { cat out.txt; fail "--index 0 does not print what the stage prints"; }
[ ! -e stop/runs/s2 ] || fail "--index 0 ran another run"

# Under mpirun a run gets the layout that was planned for a machine that is known; what has begun keeps its own when the figures change.
printf '[study]\ndata = mini/data\ndirectory = ranks\nranks = 2\n[axes]\nseed = 1\n[pretrain]\ntrain.epochs = 1\nmodel.hidden = 16\nparallel.table_min_rows = 8\ndata.split = ratio:0.9\ntrain.num_threads = 1\n' > ranks.ini
layout() { grep -o -- '--parallel.tables=[a-z]*' ranks/runs.json; }
"$uqa" study plan --study ranks.ini --hardware "$source/recipes/hardware/h100x8.ini" --output ranks-plan.json > plan.txt 2>err.txt || { cat err.txt; fail "plan of two ranks"; }
mkdir -p ranks
cp "$source/recipes/hardware/h100x8.ini" ranks/hardware.ini
"$uqa" study run --study ranks.ini --launcher mpirun > out.txt 2>err.txt || { cat err.txt ranks/runs/*/*.log; fail "a study under mpirun"; }
grep -q '"world": *2' ranks/runs/s1/pretrain/run.json || fail "the run had not two ranks"
planned=$(layout) && [ -n "$planned" ] || { cat ranks/runs.json; fail "no layout in runs.json"; }
group=$("$source/.venv/bin/python" -c "import json; print(json.load(open('ranks-plan.json'))['runs'][0]['stages'][0]['layout']['table_group'])")
[ "$planned" = "--parallel.tables=$([ "$group" -gt 1 ] && echo sharded || echo replicated)" ] || fail "planned groups of $group, run with $planned"
sed -i 's/^node_bytes_per_s = .*/node_bytes_per_s = 1/' ranks/hardware.ini
"$uqa" study run --study ranks.ini --launcher mpirun > out.txt 2>err.txt || { cat err.txt; fail "a finished study with other figures"; }
[ "$(layout)" = "$planned" ] || fail "a run that has begun got another layout"
echo "study passed"
