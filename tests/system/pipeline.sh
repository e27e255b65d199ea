#!/usr/bin/env bash
# The whole job in small, by the commands that the README shows: import, questions, pretrain, align, evaluate, compare.
# Usage: pipeline.sh UQA SOURCE_DIR
set -euo pipefail
uqa=$1 source=$2
source "$source/scripts/mpi_env.sh"
source "$source/tests/system/tiny_data.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "FAILED: $*"; exit 1; }
llm=$source/tests/fixtures/llm/qwen2-tiny

make_tiny_log log 80
"$uqa" import --schema "$source/recipes/ml-100k.schema.json" --input log/tiny.inter log/tiny.item --output one >/dev/null
mpirun -np 2 "$uqa" import --schema "$source/recipes/ml-100k.schema.json" --input log/tiny.inter log/tiny.item --output data >/dev/null
digest() { grep -o '"digest": *"[^"]*"' "$1/manifest.json" | head -n 1; }
[ "$(digest one)" = "$(digest data)" ] || fail "the data set depends on the number of ranks"
"$uqa" inspect data | grep -q 80 || fail "inspect does not show the 80 users"

"$uqa" questions --data data --output questions --train 280 --test 84 | tee questions.txt
grep -q "prior-only" questions.txt || fail "questions does not print the prior-only answerer"

# The published files: import, then their questions as they are.
arrow=("$source/tests/fixtures/arrow/align_data_train.arrow" "$source/tests/fixtures/arrow/align_data_eval.arrow")
"$uqa" import --schema "$source/recipes/uqabench.schema.json" --input "${arrow[@]}" --output published >/dev/null
"$uqa" questions --data published --published "${arrow[@]}" --output published-questions | grep -q "training questions" || fail "published questions are not imported"
[ -s published-questions/train.jsonl ] && [ -s published-questions/test.jsonl ] || fail "published questions are missing"
"$uqa" questions --data published --published "${arrow[@]}" --output refused --language zh 2>err.txt && fail "--language beside --published was accepted and ignored"
grep -q "language" err.txt || fail "the refusal of --language does not name it"
"$uqa" questions --data data --output one-gold --train 280 --test 84 --gold one >/dev/null
grep -q '"gold_choice": *"one_option"' one-gold/questions.json || fail "--gold one is not recorded"

small=(--model.hidden=16 --model.num_heads=2 --model.item_dim=16 --model.feature_dim=4 --model.max_len=32 --batch.global_users=16)
split=files:questions/users_train.txt,questions/users_valid.txt
mpirun -np 2 "$uqa" pretrain --data data --run trm "${small[@]}" --train.epochs=3 --data.split="$split" >/dev/null
[ -s trm/model.safetensors ] && [ -s trm/metrics.jsonl ] && [ -s trm/config.ini ] && [ -s trm/run.json ] || fail "run directory is incomplete"
"$uqa" pretrain --config trm/config.ini --run again >/dev/null
[ -s again/model.safetensors ] || fail "config.ini does not run again"

mpirun -np 2 "$uqa" align --data data --questions questions --encoder-run trm --llm "$llm" --run align --lora.rank=4 --train.epochs=1 \
  --eval.every 4 --eval.max_questions 20 >/dev/null
grep '"kind":"evaluation"' align/metrics.jsonl | grep -q '"letter_accuracy"' || fail "no question was asked during alignment"
for prompt in soft none zero shuffled text; do
  mpirun -np 2 "$uqa" evaluate --run align --data data --prompt "$prompt" --output "eval-$prompt" >/dev/null
done
"$uqa" evaluate --run align --data data --prompt soft --output eval-soft-1 >/dev/null
mpirun -np 2 "$uqa" evaluate --run align --data data --prompt text --text_items 2,8 --max-new-tokens 4 --temperature 0.7 --output budgets >/dev/null
[ -s budgets/items2/result.json ] && [ -s budgets/items8/result.json ] || fail "two budgets of titles do not give two evaluations"
"$uqa" evaluate --run align --data data --prompt text --text_items 8 --max_new_tokens 4 --temperature 0.7 --output again-8 >/dev/null
grep -q '"scored": *0' again-8/result.json || fail "a second evaluation asked the model again"
cmp -s again-8/predictions.jsonl budgets/items8/predictions.jsonl || fail "a second evaluation gives other answers"
accuracies() { sed 's/"questions_per_s[^,]*,//' "$1/result.json" | grep -E '"(correct|n)"'; }
[ "$(accuracies eval-soft)" = "$(accuracies eval-soft-1)" ] || fail "evaluation depends on the number of ranks"
"$uqa" compare soft=eval-soft none=eval-none shuffled=eval-shuffled text=eval-text --output result.json | tee compare.txt
[ -s result.json ] || fail "compare wrote no result.json"
[ "$(wc -l < eval-soft/predictions.jsonl)" = 84 ] || fail "predictions.jsonl does not have 84 lines"
echo "pipeline passed"
