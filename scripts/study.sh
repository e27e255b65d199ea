#!/usr/bin/env bash
# A scaling study on generated data, on this machine: encoder width (seven, two seeds) and amount of data (five fractions, two seeds).
# At most an hour on two idle cores. What ran before is skipped, what was interrupted goes on.
# Usage: scripts/study.sh [--mini | --qa] [--uqa PROGRAM] [--output DIR] [--jobs 2]
#   --mini   the same commands in miniature, under a minute: a test
#   --qa     accuracy against encoder size and history length with SmolLM2-135M: up to three hours
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

kind=widths uqa='' output='' jobs=2
while [ $# -gt 0 ]; do
  case "$1" in
    --mini) kind=mini; shift ;;
    --qa) kind=qa; shift ;;
    --uqa) uqa=$(realpath "$2"); shift 2 ;;
    --output) output=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "study.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
  esac
done
case "$kind" in
  widths) folder=build/study ;;
  mini) folder=build/study-mini ;;
  qa) folder=build/study-qa ;;
esac
output=$(realpath -m "${output:-$root/$folder}")

cd "$root"
source scripts/mpi_env.sh
if [ -z "$uqa" ]; then
  if [ "$kind" = qa ]; then scripts/setup.sh --models; else scripts/setup.sh; fi
  cmake --preset release >/dev/null
  cmake --build --preset release --target uqa -- --quiet
  uqa=$root/build/release/uqa
fi
mkdir -p "$output"
# The recipe's paths, with this run's directory in their place.
study=$output/$kind.ini
sed "s|$folder/|$output/|" "recipes/studies/$kind.ini" > "$study"

synth() {
  [ -e "$output/data/manifest.json" ] || "$uqa" synth --output "$output/data" --format hdf5 "$@" > "$output/synth.json"
}
case "$kind" in
  # What comes next is a matter of the last item's cluster, by a matrix of full rank whose singular values fall as k^-0.7: an encoder of width w holds w of
  # them. Rules that only memorising learns are left out, and an epoch is long enough for the widest encoder, so that width is what is short.
  widths) synth --users 200000 --items 512 --interactions 12000000 --features none --clusters 256 --successor 0 --transition 0.95 --interest 0 --rule 0 --lags 1 \
    --spectrum 0.7 --strength 2 --seed 1 ;;
  mini) synth --users 500 --items 200 --interactions 10000 --features none --seed 1 --oracle_positions 2000 ;;
  qa)
    synth --users 12000 --items 2000 --interactions 720000 --features cate --seed 1
    [ -e "$output/questions/test.jsonl" ] || "$uqa" questions --data "$output/data" --output "$output/questions" --max_len 64 --train 8400 --test 4200
    ;;
esac
grep -A3 '"entropy_nats"' "$output/synth.json" | head -4

calibrate=(--calibrate)
[ "$kind" = mini ] && calibrate+=(--calibrate_s 0.05)
[ "$kind" = qa ] && calibrate+=(--calibrate_s 1)
"$uqa" study plan --study "$study" "${calibrate[@]}" --output "$output/plan.json" --overwrite
"$uqa" study run --study "$study" --jobs "$jobs"
"$uqa" study status --study "$study"
directory=$(sed -n 's/^directory = //p' "$study")
echo "measured: $directory/points.csv"
# A miniature has too few runs for a law.
[ "$kind" = mini ] || "$uqa" study fit --study "$study"
