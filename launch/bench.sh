#!/usr/bin/env bash
# Measure a running server with SGLang's own serving benchmark, 4,096 tokens in, 1,024 out:
#   launch/bench.sh [URL [DIRECTORY]]      default: http://127.0.0.1:30000 bench-DATE
#
# Variables: CONCURRENCY="1 8 32" INPUT=4096 OUTPUT=1024 REQUESTS=4. A run sends REQUESTS times its
# concurrency, at least 8. DIRECTORY gets results.jsonl (SGLang's own), report.md and, with
# matplotlib, report.svg. The prompts are random token ids: with these fewer drafted tokens are
# accepted than with real text.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [[ ${1:-} == -* ]]; then sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; fi
url="${1:-http://127.0.0.1:30000}"
out="${2:-bench-$(date +%Y-%m-%d-%H%M%S)}"
python="${PYTHON:-python}"
mkdir -p "$out"
results="$out/results.jsonl"
if [[ -e $results ]]; then printf '%s exists; name another directory\n' "$results" >&2; exit 2; fi

for concurrency in ${CONCURRENCY:-1 8 32 64 128}; do
  prompts=$((concurrency * ${REQUESTS:-4} > 8 ? concurrency * ${REQUESTS:-4} : 8))
  "$python" -m sglang.benchmark.serving --backend sglang --base-url "$url" --flush-cache \
    --dataset-name random-ids --random-range-ratio 1 --seed "$concurrency" \
    --random-input-len "${INPUT:-4096}" --random-output-len "${OUTPUT:-1024}" \
    --num-prompts "$prompts" --max-concurrency "$concurrency" --output-file "$results"
done
"$python" "$here/bench_report.py" "$results"
