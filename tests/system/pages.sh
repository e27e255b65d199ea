#!/usr/bin/env bash
# Completions and the manual page name every command and option that --help names, and are well formed.
# Usage: pages.sh UQA
set -uo pipefail
uqa=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; exit 1; }

"$uqa" completion bash > "$work/uqa.bash" || fail "completion bash"
bash -n "$work/uqa.bash" || fail "the completion is no bash"
"$uqa" completion zsh > "$work/uqa.zsh" && grep -q bashcompinit "$work/uqa.zsh" || fail "completion zsh"
"$uqa" completion fish 2>"$work/err" && fail "an unknown shell was accepted"
grep -q "must be bash or zsh" "$work/err" || fail "the refusal of fish: $(cat "$work/err")"

# complete WORDS...: what bash would offer for the last word.
complete_words() {
  bash -c 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _uqa; echo "${COMPREPLY[@]}"' _ "$work/uqa.bash" "$@"
}
[ "$(complete_words uqa pre)" = pretrain ] || fail "'pre' is completed to: $(complete_words uqa pre)"
[ "$(complete_words uqa pretrain --optim.peak)" = --optim.peak_lr ] || fail "an option is completed to: $(complete_words uqa pretrain --optim.peak)"
touch "$work/some_file"
[ "$(cd "$work" && complete_words uqa pretrain --data some)" = some_file ] || fail "values are not completed to files"

"$uqa" man > "$work/uqa.1" || fail "man"
if command -v groff >/dev/null; then
  groff -man -Tascii -ww "$work/uqa.1" 2>"$work/groff.err" >/dev/null
  [ ! -s "$work/groff.err" ] || fail "groff: $(head -n 3 "$work/groff.err")"
fi
checked=0
commands() { # of the program, or of a command that has its own
  "$uqa" "$@" --help | awk '/^(Commands|Actions)/ { on = 1; next } /^$/ { on = 0 } on { print $1 }'
}
for command in $(commands | sed 's/^study$//') $(commands study | sed 's/^/study:/'); do
  for option in $("$uqa" ${command/:/ } --help | grep -o '^  --[a-z_.0-9-]*'); do
    grep -qF -- " $option" "$work/uqa.bash" || fail "the completion lacks $option of $command"
    grep -qF -- "\\fB${option//-/\\-}\\fR" "$work/uqa.1" || fail "the manual page lacks $option of $command"
    checked=$((checked + 1))
  done
done
[ "$checked" -gt 100 ] || fail "only $checked options were checked"
echo "pages: $checked options"
