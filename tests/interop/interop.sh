#!/usr/bin/env bash
# Checkpoints in and out: a .pt of the reference's form is converted, imported and aligned; what `uqa export` writes is loaded by stock transformers.
# Usage: interop.sh [BUILD_DIR [PYTHON]]     default: build/release, .venv-interop/bin/python (scripts/setup.sh --interop)
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(realpath "${1:-$source_dir/build/release}")
python=${2:-$source_dir/.venv-interop/bin/python}
[ -x "$python" ] || { echo "interop.sh: $python is missing; run scripts/setup.sh --interop" >&2; exit 2; }
uqa=$build/uqa dump=$(find "$build/tests/interop" -name uqa_interop_dump -type f)
# shellcheck source=scripts/mpi_env.sh
source "$source_dir/scripts/mpi_env.sh"
# shellcheck source=tests/system/tiny_data.sh
source "$source_dir/tests/system/tiny_data.sh"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
checks=$source_dir/tests/interop
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "FAILED: $*"; exit 1; }
quietly() { "$@" >log.txt 2>&1 || { cat log.txt; fail "$*"; }; }

make_tiny_log log 60
quietly "$uqa" import --schema "$source_dir/recipes/ml-100k.schema.json" --input log/tiny.inter log/tiny.item --output data
quietly "$uqa" questions --data data --output questions --train 140 --test 56
structure=(--encoder sasrec --model.hidden=16 --model.num_heads=2 --model.num_layers=2 --model.inner=32 --model.item_dim=16 --model.feature_dim=4 --model.max_len=16)
quietly "$uqa" pretrain --data data --run sasrec "${structure[@]}" --train.epochs=2 --batch.global_users=16 --data.split=ratio:0.8

echo "[interop] a .pt as the reference writes it, converted and imported"
"$python" "$checks/check_checkpoint.py" write sasrec/model.safetensors epoch_1.pt --item-table item_id
"$python" "$source_dir/scripts/convert_checkpoint.py" --list epoch_1.pt > list.txt
grep -q '^score_head_weight  float32  \[' list.txt || fail "--list does not show score_head_weight"
quietly "$python" "$source_dir/scripts/convert_checkpoint.py" epoch_1.pt weights.safetensors
quietly "$uqa" import-checkpoint --weights weights.safetensors "${structure[@]}" --data data --run imported
"$python" "$checks/check_checkpoint.py" same sasrec/model.safetensors imported/model.safetensors
quietly "$uqa" export --run imported --output encoder
"$python" "$checks/check_checkpoint.py" same sasrec/model.safetensors encoder/encoder.safetensors
quietly "$uqa" inspect imported
quietly "$uqa" import-checkpoint --config imported/config.ini --run again
"$python" "$checks/check_checkpoint.py" broken broken.pt
status=0
"$python" "$source_dir/scripts/convert_checkpoint.py" broken.pt broken.safetensors 2>err.txt || status=$?
[ "$status" = 3 ] && grep -q "entry 'epoch' is int, must be a tensor" err.txt && [ ! -e broken.safetensors ] || { cat err.txt; fail "a .pt with more than tensors"; }
status=0
"$python" "$source_dir/scripts/convert_checkpoint.py" log/tiny.inter broken.safetensors 2>err.txt || status=$?
[ "$status" = 3 ] && grep -q "not a checkpoint" err.txt || { cat err.txt; fail "a .pt that is none"; }

echo "[interop] an aligned model as the reference writes it: encoder, adapter and LLM of one directory, asked as they are"
llm=$source_dir/tests/fixtures/llm/qwen2-tiny
quietly "$uqa" align --data data --questions questions --encoder-run imported --llm "$llm" --run plain --adapter.init=plain --train.epochs=1 --optim.peak_lr=1e-2 --batch.global_users=16 --lora.rank=0
quietly "$uqa" export --run plain --output plain-export
"$python" "$checks/check_checkpoint.py" aligned plain-export "$llm" checkpoint-3
quietly "$python" "$source_dir/scripts/convert_checkpoint.py" checkpoint-3 adapter.safetensors --prefix adapter.
mkdir llm
cp "$llm"/{config,tokenizer,tokenizer_config,generation_config}.json "$llm"/chat_template.jinja llm/
quietly "$python" "$source_dir/scripts/convert_checkpoint.py" checkpoint-3 llm/model.safetensors --only model. lm_head.
quietly "$uqa" import-checkpoint --weights weights.safetensors --adapter adapter.safetensors "${structure[@]}" --data data --run reference
quietly "$uqa" align --data data --questions questions --encoder-run reference --adapter.from reference --llm llm --run assembled --freeze encoder,adapter,llm --lora.rank=0
for run in plain assembled; do quietly "$uqa" evaluate --run "$run" --data data --prompt soft --output "answers-$run"; done
cmp answers-plain/predictions.jsonl answers-assembled/predictions.jsonl || fail "the assembled model answers otherwise"
echo "  $(wc -l < answers-assembled/predictions.jsonl) answers equal"

# check NAME LLM OPTIONS...: align on the imported encoder, evaluate, export, compare.
check() {
  local name=$1 llm=$source_dir/tests/fixtures/llm/$2
  shift 2
  echo "[interop] $name"
  quietly "$uqa" align --data data --questions questions --encoder-run imported --llm "$llm" --run "$name" --train.epochs=3 --optim.peak_lr=1e-2 \
    --batch.global_users=16 "$@"
  quietly "$uqa" evaluate --run "$name" --data data --prompt soft --output "$name-eval"
  quietly "$uqa" export --run "$name" --data data --output "$name-export"
  quietly "$dump" "$name" "$name.safetensors"
  "$python" "$checks/check_llm.py" --export "$name-export" --dump "$name.safetensors" --base "$llm" --questions questions --predictions "$name-eval/predictions.jsonl"
  "$python" "$checks/check_soft_prompts.py" --export "$name-export" --dump "$name.safetensors"
}
check lora-qwen2 qwen2-tiny --lora.rank=4
check full-llama llama-tiny --lora.rank=0 --freeze encoder
echo "interop passed"
