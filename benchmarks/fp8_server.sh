#!/usr/bin/env bash
# Measure block FP8 on one H200 through the HTTP server, and where its time goes:
#   OUT=FOLDER benchmarks/fp8_server.sh STEP        # in the repository's root
#
# Each step is one server or two engines and ends within 10 minutes with warm JIT caches. Every
# result is printed and written to OUT as soon as it exists, so a step that is cut keeps what it has.
# Give the steps the same OUT: they add their arm to the same files. USERS=200@200 shortens a step.
#
#   step        what                                                            files in OUT
#   tune        tiles of projections with quantised inputs, 2 to 32 tokens      tune-pair.txt, configs.json
#   latency     ours with 3 drafts, 1 to 64 users, h200-tp1-fp8-latency         serving-fp8-latency.json
#   in-tree     in-tree, 1 to 200 users, one server                             serving-fp8-latency.json
#   throughput  ours with 3 drafts, 200 to 512 users, h200-tp1-fp8-throughput   serving-fp8-throughput.json
#   plain       ours without drafts, 1 to 200 users                             serving-fp8-throughput.json
#   profile     a speculative step by phase, and the host's Python code         profile-step.txt, profile-host.txt
#   start       starts with cold and warm caches, compiled ahead or not         start-up.json
set -uo pipefail
if [[ $# -ne 1 || -z ${OUT:-} ]]; then sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; fi
mkdir -p "$OUT"
python="${PYTHON:-python3}"
limit="${LIMIT:-520}" # seconds; then an interrupt ends the server and prints the end of its log
export SGLANG_JIT_DEEPGEMM_PRECOMPILE="${SGLANG_JIT_DEEPGEMM_PRECOMPILE:-0}" # all shapes: 8 minutes
block_fp8='"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}'

serving() { # RECIPE FILE ARM USERS [SGLANG FLAG ...]
  local recipe=$1 file=$2 arm=$3 users=$4
  shift 4
  timeout -s INT "$limit" "$python" -m benchmarks.serving "$recipe" --arms "$arm" --users "${USERS:-$users}" \
    --out "$OUT/$file" --timeout 420 "$@"
}

case $1 in
tune) # configs.json takes the place of kernels/longcat_kernels/small_linear/configs.json
  timeout -s INT "$limit" "$python" -m benchmarks.tune.pair_linear --ranks 1 --tokens 2 4 8 16 32 \
    --out "$OUT/configs.json" 2>&1 | tee "$OUT/tune-pair.txt"
  ;;
latency)
  serving h200-tp1-fp8-latency serving-fp8-latency.json ours 1,8@16,30@60,64@128 --cuda-graph-bs-decode 1 8 30 64
  ;;
in-tree) # one server for both recipes: in-tree's tables are on the GPU, whatever the recipe says
  serving h200-tp1-fp8-latency serving-fp8-latency.json in-tree 1@3,8@8,30@30,64@64,200@200 \
    --cuda-graph-bs-decode 1 8 30 64 200 --max-running-requests 230
  ;;
throughput)
  serving h200-tp1-fp8-throughput serving-fp8-throughput.json ours 200@200,400@400,512@512 --cuda-graph-bs-decode 64 200 400 512
  ;;
plain)
  serving h200-tp1-fp8-throughput serving-fp8-throughput.json no-drafts 1@2,8@8,30@30,64@64,200@200 \
    --cuda-graph-bs-decode 1 8 30 64 200
  ;;
profile) # n-gram tables of a twentieth of their rows: the step is the same, and 59 GiB need no pinning
  engine='{"attention_backend": "fa3", "cuda_graph_bs_decode": [1, 8], "mem_fraction_static": 0.8}'
  config="{\"ngram_vocab_size_ratio\": 4, $block_fp8}"
  timeout -s INT 270 "$python" -m benchmarks.profile_step --arms spec --batch 1,8 --rows 25 --engine "$engine" \
    --config "$config" 2>&1 | tee "$OUT/profile-step.txt" | grep -E '^(STEP|\||  )|rror'
  timeout -s INT 290 "$python" -m benchmarks.profile_host --arms spec --batch 1 --work decode,prefill --seconds 12 \
    --out "$OUT/host" --engine "$engine" --config "$config" 2>&1 | tee "$OUT/profile-host.txt" | grep -E '^(HOST|\|)|py-spy|rror'
  ;;
start)
  timeout -s INT "$limit" "$python" -m benchmarks.start_up --out "$OUT/start-up.json"
  ;;
*) exec "${BASH_SOURCE[0]}" ;;
esac
