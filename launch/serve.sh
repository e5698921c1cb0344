#!/usr/bin/env bash
# Print the command of a recipe and run it:  launch/serve.sh [-n] RECIPE [SGLANG FLAG ...]
#
# RECIPE is a name in launch/recipes or a YAML file of your own. Flags after it override the file's.
# NAME.env beside NAME.yaml holds the environment variables of the recipe, one NAME=VALUE a line (the
# form of `docker run --env-file`). Variables that are set already are not changed. -n prints the
# command and does not run it. PYTHON names the interpreter.
set -euo pipefail
recipes="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/recipes"

run=exec
if [[ ${1:-} == -n ]]; then run=true; shift; fi
if [[ $# -eq 0 || $1 == -* ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  printf 'recipes: %s\n' "$(basename -s .yaml "$recipes"/*.yaml | tr '\n' ' ')" >&2
  exit 2
fi
recipe="$recipes/${1%.yaml}.yaml"
if [[ $1 == */* || ! -f $recipe ]]; then recipe=$1; fi
if [[ ! -f $recipe ]]; then printf 'no recipe %s\n' "$1" >&2; exit 2; fi
shift

if [[ -f ${recipe%.yaml}.env ]]; then
  while IFS= read -r line; do
    [[ $line == [A-Z]*=* ]] || continue
    [[ -v ${line%%=*} ]] || export "${line?}"
    printf 'export %s=%q\n' "${line%%=*}" "$(printenv "${line%%=*}")"
  done < "${recipe%.yaml}.env"
fi
command=("${PYTHON:-python}" -m sglang.launch_server --config "$recipe" "$@")
printf '%q ' "${command[@]}"; printf '\n'
$run "${command[@]}"
