#!/usr/bin/env bash
# Runs the commands of docs/reproduce.md in miniature: its bash blocks as they stand, the first one (settings) replaced.
# Usage: reproduce.sh UQA SOURCE_DIR
set -euo pipefail
uqa=$1 source=$2
source "$source/scripts/mpi_env.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; exit 1; }

awk '/^```bash$/ { block++; on = 1; next } /^```/ { on = 0 } on && block > 1' "$source/docs/reproduce.md" > "$work/blocks.sh"
[ "$(grep -c 'pretrain\|align\|evaluate\|compare\|report' "$work/blocks.sh")" -ge 8 ] || fail "docs/reproduce.md has too few commands"

cat > "$work/settings.sh" <<SETTINGS
set -euo pipefail
ranks="mpirun -np 2 $uqa"
alone=$uqa
raw=$source/tests/fixtures/arrow
llm=$source/tests/fixtures/llm/qwen2-tiny
encoders="sasrec hstu gru4rec mamba2 trm_plus"
pretrain_sizes=(--model.hidden=16 --model.num_layers=1 --model.num_heads=2 --model.inner=16 --model.item_dim=8 --model.feature_dim=4 --model.max_len=32
                --model.hstu.linear_dim=8 --model.hstu.attention_dim=8 --model.mamba2.head_dim=8 --model.mamba2.state_size=8 --train.epochs=1)
align_sizes=(--train.epochs=1)
SETTINGS
ln -s "$source/recipes" "$work/recipes"
cd "$work"
cat settings.sh blocks.sh > all.sh
if ! bash all.sh > out.txt 2> err.txt; then
  tail -n 20 out.txt err.txt
  fail "the commands of docs/reproduce.md"
fi
for encoder in sasrec hstu gru4rec mamba2 trm_plus; do
  [ -s "work/$encoder/model.safetensors" ] || fail "$encoder was not trained"
  [ -s "work/$encoder-align/eval/soft/result.json" ] || fail "$encoder was not evaluated"
  grep -q '"deviations"' "work/$encoder/run.json" || fail "run.json of $encoder names no deviations"
done
[ -s work/result.json ] && [ -s work/report.html ] || fail "no comparison or page"
echo "reproduce passed"
