#!/usr/bin/env bash
# uqa study fit, report and export --tensorboard as a user runs them; the page is opened in headless Chromium: no error, every plot drawn.
# Usage: report.sh UQA SOURCE_DIR
set -euo pipefail
uqa=$1 source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "FAILED: $*"; exit 1; }
python=$(command -v python3)

# Runs, evaluations and a study's points.csv, with names that would be markup if they were not escaped.
"$python" "$source/tests/system/make_report_data.py" data
"$uqa" study fit --points data/points.csv --columns n=n_backbone,n=n_total,d=d_interactions,c=c_flops,loss=loss_nats --output data/study/fit --resamples 400 > fit.txt
grep -q "L(N, D) = E + A / N^alpha + B / D^beta" fit.txt || fail "study fit prints no law"
grep -q "straight log-log line" fit.txt || fail "study fit prints no baselines"
[ -s data/study/fit/fit.json ] && [ -s data/study/fit/curves.csv ] || fail "study fit wrote no files"
"$uqa" study fit --study data/study --output second --resamples 400 > study.txt
grep -q "Acc_df(L)" study.txt || fail "study fit does not fit accuracies"

"$uqa" report data/study "<b>soft</b>=data/eval/soft" data/eval/none data/compare.json --output report.html --csv csv --title '</title><script>alert(1)</script>'
size=$(wc -c < report.html)
[ "$size" -lt 6000000 ] || fail "the page has $size bytes"
[ "$(find csv -name '*.csv' | wc -l)" -ge 10 ] || fail "CSV files are missing"
"$uqa" report data/study --output report.html 2>err.txt && fail "an existing page was overwritten"
grep -q -- "--overwrite" err.txt || fail "the refusal does not say how to overwrite"

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || fail "no chromium; run scripts/setup.sh"
# A home of its own, and no network: the page fetches nothing.
export HOME=$work/home XDG_CONFIG_HOME=$work/home XDG_CACHE_HOME=$work/home
mkdir -p home
for width in 1280 500; do
  timeout -k 10 240 "$browser" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking --user-data-dir="$work/home/$width" \
    --window-size="$width,900" --virtual-time-budget=120000 --dump-dom "file://$work/report.html" > dom.html 2> browser.txt || fail "chromium: $(tail -n 3 browser.txt)"
  body=$(grep -o '<body[^>]*>' dom.html | head -n 1)
  attribute() { sed -n "s/.* data-$1=\"\([^\"]*\)\".*/\1/p" <<< "$body"; }
  [ "$(attribute ready)" = true ] || fail "width $width: the page did not finish: $body"
  [ "$(attribute errors)" = 0 ] || fail "width $width: $body"
  [ "$(attribute plots-expected)" -ge 10 ] || fail "width $width: too few plots: $body"
  [ "$(attribute plots-drawn)" = "$(attribute plots-expected)" ] || fail "width $width: $body"
  grep -q '<title>&lt;/title&gt;&lt;script&gt;' dom.html || fail "the title is not escaped"
  if grep -q '<img src="x"' dom.html; then fail "a run's name became markup"; fi
done

# The check itself can fail: a page without plotly draws nothing and says so.
echo 'window.notPlotly = 1;' > empty.js
"$uqa" report data/study --plotly empty.js --output broken.html >/dev/null
timeout -k 10 240 "$browser" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --user-data-dir="$work/home/broken" --virtual-time-budget=60000 \
  --dump-dom "file://$work/broken.html" > dom.html 2> browser.txt || fail "chromium: $(tail -n 3 browser.txt)"
grep -o '<body[^>]*>' dom.html | grep -q 'data-plots-drawn="0"' || fail "a page without plotly counts plots as drawn"
grep -o '<body[^>]*>' dom.html | grep -q 'data-errors="0"' && fail "a page without plotly reports no error"

# TensorBoard: read back by a parser that knows nothing of ours.
"$uqa" export --tensorboard --run data/study/runs/w8-s1 --output tb > tb.json
"$python" "$source/tests/system/read_tensorboard.py" tb data/study/runs/w8-s1/metrics.jsonl || fail "TensorBoard events differ from metrics.jsonl"
echo "report passed: $size bytes"
