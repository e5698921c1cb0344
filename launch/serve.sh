#!/usr/bin/env bash
# Start a server with a recipe:  launch/serve.sh [-n] RECIPE [SGLANG FLAG ...]
#
# The same as `sglang-longcat serve RECIPE ...`, which also chooses a recipe if none is named. RECIPE is
# a name or a YAML file of your own. -n prints the command and does not run it. PYTHON names the
# interpreter.
set -euo pipefail

print=()
if [[ ${1:-} == -n ]]; then print=(--print); shift; fi
if [[ $# -eq 0 || $1 == -* ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
exec "${PYTHON:-python}" -m sglang_longcat serve "$1" "${print[@]}" "${@:2}"
