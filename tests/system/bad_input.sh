#!/usr/bin/env bash
# Bad input ends with exit code 2 or 3 and one clear line, on one rank and on two, without a hang or a half-written output.
# Usage: bad_input.sh UQA SOURCE_DIR RANKS
set -uo pipefail
uqa=$1 source=$2 ranks=$3
source "$source/scripts/mpi_env.sh"
source "$source/tests/system/tiny_data.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0 cases=0

program=("$uqa")
mpi_options=()
run() {
  if [ "$ranks" = 1 ]; then timeout 120 "${program[@]}" "$@"; else timeout 120 mpirun -np "$ranks" "${mpi_options[@]}" "${program[@]}" "$@"; fi
}

# expect CODE PATTERN WORDS...: exit code, exactly one line of ours that matches, no stack trace.
expect() {
  local code=$1 pattern=$2
  shift 2
  cases=$((cases + 1))
  run "$@" >out.txt 2>err.txt
  local got=$? lines
  lines=$(grep -c '^uqa: ' err.txt)
  if [ "$got" != "$code" ] || [ "$lines" != 1 ] || ! grep '^uqa: ' err.txt | grep -qE -- "$pattern" || grep -qE 'terminate called|frame #|Backtrace' err.txt; then
    failures=$((failures + 1))
    echo "FAILED ($ranks ranks): uqa $*"
    echo "  wanted exit $code and one line like: $pattern"
    echo "  got exit $got and $lines line(s):"
    sed 's/^/    /' err.txt | head -20
  fi
}

absent() {
  cases=$((cases + 1))
  for path in "$@"; do
    if [ -e "$path" ]; then
      failures=$((failures + 1))
      echo "FAILED ($ranks ranks): $path was left behind"
    fi
  done
}

# good WORDS...: must succeed (the cases below start from its result).
good() {
  cases=$((cases + 1))
  if ! run "$@" >out.txt 2>err.txt; then
    echo "FAILED ($ranks ranks): uqa $*"
    sed 's/^/    /' err.txt | head -20
    exit 1
  fi
}

make_tiny_log log 60
llm=$source/tests/fixtures/llm/qwen2-tiny
schema=$source/recipes/ml-100k.schema.json
import=(import --schema "$schema" --input log/tiny.inter log/tiny.item)

# The command line.
expect 2 "unknown command 'pretrian'.*did you mean 'pretrain'" pretrian
expect 2 "unknown option '--schemo'.*did you mean '--schema'" import --schemo x
expect 2 "optim.peak_lr = fast, must be a number" pretrain --data d --run r --optim.peak_lr fast
expect 2 "--data is required" pretrain --run r
expect 2 "parallel.tp = 3" pretrain --data d --run r --parallel.tp=3
expect 2 "parallel.tables = rows, must be replicated or sharded" pretrain --data d --run r --parallel.tables=rows
expect 2 "parallel.shard = rows, must be none, optimizer or full.*--parallel.shard" pretrain --data d --run r --parallel.shard=rows
expect 2 "parallel.table_group" pretrain --data d --run r --parallel.table_group=-1
expect 2 "dropout" pretrain --data d --run r --model.dropout=1.5

expect 2 "memory.recompute = some, must be none or layers" pretrain --data d --run r --memory.recompute=some

# Devices: refused before work. Whether the plug-in or the device is missing depends on the machine; both name the way out.
expect 2 "device = gpu, must be cpu or cuda" doctor --device=gpu
expect 2 "device = gpu, must be cpu or cuda" pretrain --data d --run r --device=gpu
if ! command -v nvidia-smi >/dev/null; then
  expect 2 "(plug-in|CUDA devices = 0).*--device=cpu" doctor --device=cuda
  expect 2 "(plug-in|CUDA devices = 0).*--device=cpu" bench collectives --device=cuda
  expect 2 "(plug-in|CUDA devices = 0).*--device=cpu" bench step --device=cuda
  expect 2 "(plug-in|CUDA devices = 0).*--device=cpu" pretrain --data d --run r --device=cuda
  expect 2 "(plug-in|CUDA devices = 0).*--device=cpu" align --data d --questions q --encoder-run e --llm l --run r --device=cuda
  expect 2 "(plug-in|CUDA devices = 0).*--device=cpu" evaluate --run r --data d --device=cuda
  expect 2 "(plug-in|CUDA devices = 0).*--device=cpu" verify --run r --device=cuda
fi
expect 2 "parallel.tp = 3" doctor --parallel.tp=3
expect 2 "allreduce.*all_reduce" bench collectives --ops allreduce
expect 2 "sizes = -1" bench collectives --sizes=-1
expect 2 "bench collectives --users: has no meaning" bench collectives --users 3
expect 2 "bench step --sizes: has no meaning" bench step --sizes 1024

# Import.
sed 's/"movie_title"/"film_title"/' "$schema" > absent.json
expect 3 "film_title" import --schema absent.json --input log/tiny.inter log/tiny.item --output out
echo '{"name": "x", "layout": "evnts"}' > layout.json
expect 2 "evnts|layout" import --schema layout.json --input log/tiny.inter --output out
: > empty.inter
expect 3 "empty.inter" import --schema "$schema" --input empty.inter log/tiny.item --output out
expect 3 "none.inter" import --schema "$schema" --input none.inter log/tiny.item --output out
arrow=$source/tests/fixtures/arrow/pretrain_data_train.arrow
sed 's/: [0-9][0-9]*\(,\{0,1\}\)$/: 1\1/' "$source/recipes/uqabench.schema.json" > small_tables.json
expect 3 "item_id|cate_id|bpe_tokens" import --schema small_tables.json --input "$arrow" --output out
head -c 5000 "$arrow" > cut.arrow
expect 3 "cut.arrow" import --schema "$source/recipes/uqabench.schema.json" --input cut.arrow --output out
absent out out.tmp
printf 'lonely\ti1\t5\n' > one.tail
cat log/tiny.inter one.tail > lonely.inter
good import --schema "$schema" --input lonely.inter log/tiny.item --output lonely
grep -q '"dropped_users": 1' out.txt || { failures=$((failures + 1)); echo "FAILED: a user with one interaction is not reported"; cat out.txt; }
good "${import[@]}" --output data
expect 2 "data.*--overwrite" "${import[@]}" --output data
good "${import[@]}" --output data --overwrite

# A full disk: a limit on the size of files stands in for it. The earlier data set stays as it was.
before=$(cat data/* 2>/dev/null | cksum)
# Each rank limits itself (mpirun's own files must not suffer), and talks over loopback (shared-memory segments are files too).
program=(bash -c 'trap "" XFSZ; ulimit -f 16; exec "$@"' limited "$uqa")
mpi_options=(--mca btl self,tcp)
expect 3 "." "${import[@]}" --output data --overwrite
program=("$uqa")
mpi_options=()
after=$(cat data/* 2>/dev/null | cksum)
[ "$before" = "$after" ] || { failures=$((failures + 1)); echo "FAILED: a full disk changed the earlier data set"; }

# Shards.
small=(--model.item_dim=8 --model.feature_dim=4 --model.max_len=16 --train.epochs=1 --data.split=ratio:0.8)
cp -r data cut
shard=$(find cut -name '*.h5' | head -n 1)
truncate -s -100 "$shard"
expect 3 "$(basename "$shard")" pretrain --data cut --run run "${small[@]}"
rm -r cut
cp -r data flipped
shard=$(find flipped -name '*.h5' | head -n 1)
printf '\xff' | dd of="$shard" bs=1 seek=3000 conv=notrunc status=none
expect 3 "$(basename "$shard")" pretrain --data flipped --run run "${small[@]}"
expect 3 "nowhere" pretrain --data nowhere --run run "${small[@]}"

# Run directories and checkpoints.
mkdir busy
echo mine > busy/notes.txt
expect 2 "busy" pretrain --data data --run busy "${small[@]}"
[ "$(cat busy/notes.txt)" = mine ] || { failures=$((failures + 1)); echo "FAILED: a refused run directory was changed"; }
good pretrain --data data --run trm --model.hidden=16 "${small[@]}"
expect 2 "hidden" pretrain --data data --run trm --model.hidden=32 "${small[@]}"
good pretrain --data data --run other --model.hidden=32 "${small[@]}"
rm -rf other/checkpoints other/result.json other/model.safetensors
cp -r trm/checkpoints other/checkpoints
expect 3 "16 x .*32 x " pretrain --data data --run other --model.hidden=32 "${small[@]}"

# Checkpoints of the reference (a command of one process).
if [ "$ranks" = 1 ]; then
  reference=(import-checkpoint --run imported --model.hidden=16 --model.num_heads=2 --model.num_layers=2 --model.inner=0 --model.feature_dim=4 --model.max_len=16)
  trm=("${reference[@]}" --encoder trm_plus --model.item_dim=8)
  expect 2 "--weights is required" import-checkpoint --data data --run imported
  expect 2 "epoch_3.pt.*scripts/convert_checkpoint.py" "${trm[@]}" --data data --weights epoch_3.pt
  expect 3 "nowhere.safetensors" "${trm[@]}" --data data --weights nowhere.safetensors
  expect 3 "nowhere" "${trm[@]}" --data nowhere --weights trm/model.safetensors
  head -c 3000 trm/model.safetensors > cut.safetensors
  expect 3 "cut.safetensors" "${trm[@]}" --data data --weights cut.safetensors
  expect 3 "item_id.weight \\[48, 8\\] instead of \\[48, 12\\]" "${reference[@]}" --encoder trm_plus --model.item_dim=12 --data data --weights trm/model.safetensors
  expect 3 "missing: backbone.*left over: backbone" "${reference[@]}" --encoder sasrec --model.item_dim=8 --data data --weights trm/model.safetensors
  expect 2 "--ignore proj1.bias.*needs this tensor" "${trm[@]}" --data data --weights trm/model.safetensors --ignore proj1.bias
  expect 2 "--ignore mask.*no such tensor" "${trm[@]}" --data data --weights trm/model.safetensors --ignore mask
  expect 2 "preset = published" "${trm[@]}" --preset published --data data --weights trm/model.safetensors
  grep -v "i4[0-9]" log/tiny.inter > fewer.inter
  grep -v "^i4[0-9]" log/tiny.item > fewer.item
  good import --schema "$schema" --input fewer.inter fewer.item --output fewer
  expect 3 "item_id.weight is \\[48, 8\\], table item_id of data set fewer has 40 rows" "${trm[@]}" --data fewer --weights trm/model.safetensors
  absent imported imported.tmp
  expect 2 "trm.*--overwrite" "${trm[@]/imported/trm}" --data data --weights trm/model.safetensors
  good "${trm[@]}" --data data --weights trm/model.safetensors
  expect 2 "imported holds an import-checkpoint run, not a pretrain run" pretrain --data data --run imported --model.hidden=16 "${small[@]}"
fi

# Language model and tokenizer.
if [ "$ranks" = 1 ]; then
  good questions --data data --output questions --train 140 --test 56
else
  timeout 120 "$uqa" questions --data data --output questions --train 140 --test 56 >out.txt 2>err.txt || { cat err.txt; exit 1; }
fi
align=(align --data data --questions questions --encoder-run trm --train.epochs=1 --lora.rank=2)
for file in model.safetensors tokenizer.json config.json; do
  cp -r "$llm" "broken-$file"
  chmod -R u+w "broken-$file"
  truncate -s -200 "broken-$file/$file"
  expect 3 "$file" "${align[@]}" --llm "broken-$file" --run align
done
expect 2 "nowhere" "${align[@]}" --llm nowhere --run align
expect 2 "answer" "${align[@]}" --llm "$llm" --run align --answer word
expect 2 "lora.rank" "${align[@]}" --llm "$llm" --run align --lora.rank=-1
# Parts that do not fit together are refused before the run directory is made.
fit=(align --data data --questions questions --encoder-run trm --llm "$llm" --run refused)
expect 2 "adapter.tokens = 0, must be between 1 and 64.*--adapter.tokens" "${fit[@]}" --adapter.kind qformer --adapter.tokens=0
expect 2 "adapter.tokens = 4 with adapter.kind = linear, which makes 1" "${fit[@]}" --adapter.tokens=4
expect 2 "adapter.heads = 3, must divide the encoder's width 16.*--adapter.heads" "${fit[@]}" --adapter.kind qformer --adapter.heads=3
expect 2 "leave nothing to train.*--lora.rank" "${fit[@]}" --freeze encoder,adapter,llm --lora.rank=0
expect 2 "lora.alpha = 8 with lora.rank = 0.*--lora.rank" "${fit[@]}" --lora.rank=0 --lora.alpha=8
expect 2 "lora.rank = 2 while the whole LLM is trained.*--lora.rank 0" "${fit[@]}" --lora.rank=2 --freeze encoder
expect 2 "cache.users = memory with encoder.eval_when_frozen = false.*--cache.users off" "${fit[@]}" --preset faithful --cache.users memory
expect 2 "prompt.max_tokens = 20.*--objective chat" "${fit[@]}" --prompt.max_tokens=20
expect 2 "preset = exact, must be default or faithful" "${fit[@]}" --preset exact
expect 2 "encoder-run = busy, holds no model.json" align --data data --questions questions --encoder-run busy --llm "$llm" --run refused
expect 2 "adapter.from = trm, is a run without an adapter" "${fit[@]}" --adapter.from trm
expect 2 "model.hidden = 16, must be divisible by model.num_heads = 3" pretrain --data data --run refused --model.hidden=16 --model.num_heads=3 "${small[@]}"
absent refused
expect 2 "'gneres' is not a feature of the data set, which has item_id, genres; did you mean 'genres'" pretrain --data data --run features --features item,gneres "${small[@]}"
expect 2 "leaves out the item feature 'item_id'.*--features item_id,genres" pretrain --data data --run features --features genres "${small[@]}"
# An adapter that was trained with another encoder.
good "${align[@]}" --llm "$llm" --run aligned --train.max_steps=1
good pretrain --data data --run trm2 --model.hidden=16 --train.seed=2 "${small[@]}"
expect 2 "was made for an encoder with digest .* --encoder-run has" align --data data --questions questions --encoder-run trm2 --llm "$llm" --run from2 --adapter.from aligned
good pretrain --data data --run trm3 --model.hidden=32 "${small[@]}"
expect 2 "encoder of width 16, --encoder-run has width 32" align --data data --questions questions --encoder-run trm3 --llm "$llm" --run from3 --adapter.from aligned
absent from3
expect 2 "nowhere" evaluate --run nowhere --data data
expect 2 "eval.every = -1, must be >= 0" "${align[@]}" --llm "$llm" --run asked --eval.every=-1
expect 2 "eval.max_questions = 0, must be > 0" "${align[@]}" --llm "$llm" --run asked --eval.every=2 --eval.max_questions=0
expect 2 "eval.every = 2 with validation_fraction = 0" "${align[@]}" --llm "$llm" --run asked --eval.every=2 --validation_fraction=0
absent asked

# Whole answers and titles as text: refused before any work.
good align --data data --questions questions --encoder-run trm --prompt none --llm "$llm" --run plain --lora.rank=2 --train.max_steps=1
evaluate=(evaluate --run plain --data data --output answers)
expect 2 "max_new_tokens = 0, must be > 0" "${evaluate[@]}" --prompt none --max_new_tokens=0
expect 2 "temperature = -0.5, must be a number >= 0" "${evaluate[@]}" --prompt none --max-new-tokens=4 --temperature=-0.5
expect 2 "max_new_tokens = 600 behind a prompt of [0-9]+ tokens .* at most 512" "${evaluate[@]}" --prompt none --max_new_tokens=600
expect 2 "text_items = 0, must be > 0" "${evaluate[@]}" --prompt text --text_items=8,0
expect 2 "text_items = few, must be a whole number" "${evaluate[@]}" --prompt text --text_items few
expect 2 "text_items holds 8 twice" "${evaluate[@]}" --prompt text --text_items 8,8
expect 2 "text_items has 2 values and prompt = none, must have one" "${evaluate[@]}" --prompt none --text_items 8,16
sed '/"title":/d' "$schema" > untitled.json
good import --schema untitled.json --input log/tiny.inter log/tiny.item --output untitled
expect 2 "text_items = 8, needs item titles and data set untitled has none" evaluate --run plain --output answers --data untitled --prompt text --text_items 8,16
# Titles of many tokens: a few fit the LLM, all of them do not.
sed 's/Title/A very long title of many words that says a lot about the film whose number is /' log/tiny.item > wordy.item
good import --schema "$schema" --input log/tiny.inter wordy.item --output wordy
if [ "$ranks" = 1 ]; then
  good questions --data wordy --output wordy-questions --train 140 --test 56
else
  timeout 120 "$uqa" questions --data wordy --output wordy-questions --train 140 --test 56 >out.txt 2>err.txt || { cat err.txt; exit 1; }
fi
expect 2 "text_items = 256 makes a prompt of [0-9]+ tokens .* at most 512" evaluate --run plain --output answers --data wordy --questions wordy-questions --prompt text --text_items 1,256
absent answers answers.tmp plain/eval

# Scaling-law fits and reports. They never start MPI: one rank is enough.
if [ "$ranks" = 1 ]; then
  printf 'parameters,tokens,loss\n1e6,1e7,3\n2e6,1e7,2.9\n' > few.csv
  expect 2 "no law can be fitted to the 2 runs of few.csv.*add runs" study fit --points few.csv --columns n=parameters,d=tokens,loss=loss
  expect 2 "column 'parameter' for n.*did you mean 'parameters'" study fit --points few.csv --columns n=parameter,loss=loss
  expect 2 "unknown role 'los'.*did you mean 'loss'" study fit --points few.csv --columns n=parameters,los=loss
  expect 2 "needs one of --study FILE and --points" study fit --columns n=parameters,loss=loss
  expect 2 "drop_outliers = 2, there are 2 runs" study fit --points few.csv --columns n=parameters,loss=loss --drop_outliers 2
  printf 'parameters,tokens,loss\n1e6,1e7,3\n2e6,1e7,nan\n' > nan.csv
  expect 3 "nan.csv, run 2: loss = 'nan' is not finite" study fit --points nan.csv --columns n=parameters,loss=loss
  printf 'parameters,tokens,loss\n1e6,1e7,3\n2e6,1e7\n' > short.csv
  expect 3 "short.csv, line 3: 2 cells, the header has 3" study fit --points short.csv --columns n=parameters,loss=loss
  expect 2 "unknown action 'fitt'.*did you mean 'fit'" study fitt
  expect 2 "nowhere does not exist" report nowhere --output page.html
  expect 2 "busy holds no run" report busy --output page.html
  cp -r trm newer
  sed -i 's/"uqa": *"[^"]*"/"uqa": "9.3.0"/' newer/run.json
  expect 2 "written by uqa 9.3.0" report newer --output page.html
  expect 2 "plotly = none.js, there is no such file" report trm --output page.html --plotly none.js
  expect 2 "holds no run.json" export --tensorboard --run busy --output tb
  expect 2 "dtype has no part in --tensorboard" export --tensorboard --run trm --output tb --dtype bf16
  absent page.html tb tb.tmp
fi

echo "$cases cases, $failures failed, $ranks rank(s)"
[ "$failures" = 0 ]
