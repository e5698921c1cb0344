#!/usr/bin/env bash
# Measure 4-bit weights at full size on one H200, which looks like smaller GPUs where a step says so:
#   OUT=FOLDER benchmarks/int4.sh STEP [STEP ...]       # in the repository's root
#
# A step starts one engine with dummy weights. Its log and results go to OUT/STEP.txt and
# OUT/STEP.json, and the goals so far are printed after each step. Small GPUs have the flags and the
# variables of their recipe. Their kernels and bandwidth stay those of an H200, so only their memory
# is measured.
#
#   step    what
#   24gb    24,564 MiB (RTX 4090): 4 requests of 4,096 tokens, tables in int4 in host memory
#   32gb    32,607 MiB (RTX 5090): tokens of KV cache, then 24 requests of 4,096
#   48gb    46,068 MiB (L40S): tokens of KV cache, then 48 requests of 4,096
#   h200    the whole GPU, tables on it: 1, 8 and 30 requests of 4,096 tokens
#   drafts  the same with three drafts, 1 request; acceptance simulated: 3.15 tokens a step
#   all     all of these
set -uo pipefail
if [[ $# -lt 1 || -z ${OUT:-} ]]; then sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; fi
mkdir -p "$OUT"
python="${PYTHON:-python3}"
limit="${LIMIT:-240}" # seconds; then an interrupt ends the engine
int4='"quantization_config": {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": true, "data_type": "int", "packing_format": "auto_round:auto_gptq", "block_name_to_quantize": "model.layers", "extra_config": {}}'
# A twentieth of the tables' rows: no other memory of the GPU depends on them, and 59 GiB need no pinning.
small_tables='"ngram_vocab_size_ratio": 4, '

engine() { # STEP ARM CONFIG ENGINE [ARGUMENT ...]
  local step=$1 arm=$2 config=$3 flags=$4
  shift 4
  timeout -s INT "$limit" "$python" -m benchmarks.engine --arms "$arm" --config "{$config$int4}" --engine "$flags" \
    --out "$OUT/$step.json" "$@" 2>&1 | tee "$OUT/$step.txt" |
    grep -E 'engine up|KV cache|N-gram tables|pinned|mem_fraction|RESULT|Error|error|does not look|^\|'
  "$python" -m benchmarks.int4_goals "$OUT"
}

flags() { # RECIPE: its flags as arguments of an engine with dummy weights
  "$python" -c 'import json, sys; from sglang_longcat.recipes import find
flags = dict(find(sys.argv[1]).flags)
print(json.dumps({name: flags[name] for name in flags if name not in ("model_path", "tool_call_parser")}))' "$1"
}

variables() { # RECIPE: those that it needs and the caller has not set, as in `sglang-longcat serve`
  "$python" -c 'import os, sys; from sglang_longcat.recipes import find
print(*(f"{name}={value}" for name, value in find(sys.argv[1]).switches.items() if name not in os.environ))' "$1"
}

small() { # RECIPE STEP CONFIG [ARGUMENT ...]: an engine as the recipe starts it
  local recipe=$1 step=$2 config=$3 flags variables
  shift 3
  flags=$(flags "$recipe") && variables=$(variables "$recipe") || return
  # shellcheck disable=SC2086 # one word for each variable
  (export LONGCAT_GPU_MEMORY_MIB $variables && engine "$step" host "$config" "$flags" "$@")
}

run() {
  case $1 in
  24gb) LONGCAT_GPU_MEMORY_MIB=24564 small 24gb-tp1-int4 24gb "" --batch 4 --repeat 2 ;;
  32gb)
    LONGCAT_GPU_MEMORY_MIB=32607 small 32gb-tp1-int4 32gb "$small_tables" --batch 24 --repeat 1 --output 32
    ;;
  48gb)
    LONGCAT_GPU_MEMORY_MIB=46068 small 48gb-tp1-int4 48gb "$small_tables" --batch 48 --repeat 1 --output 32
    ;;
  h200) engine h200 device "" '{"cuda_graph_bs_decode": [1, 8, 30]}' --batch 1,8,30 ;;
  drafts) engine drafts spec-device "" '{"cuda_graph_bs_decode": [1]}' --batch 1 ;;
  all) for step in 24gb h200 drafts 32gb 48gb; do run "$step"; done ;;
  *) "${BASH_SOURCE[0]}" ;;
  esac
}

for step in "$@"; do run "$step"; done
