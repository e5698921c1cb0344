#!/usr/bin/env bash
# Makes the shipped checkpoint and its thresholds from a finished training: exports, measures on the
# CPU, runs the gates. PYTHON: an interpreter with the project's packages and matplotlib.
#
#     training/nano/ship.sh DATA RUN [ABLATION]
#
# Look at `git diff ci/accuracy/thresholds.toml` and sglang_longcat/assets/nano/golden.json afterwards.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
data=$(realpath "$1") run=$(realpath "$2") ablation=${3:+$(realpath "$3")}
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"

"$python" -m training.nano export --data "$data" --run "$run" \
    ${ablation:+--ablation "$ablation"} --out sglang_longcat/assets/nano
"$python" -m ci.accuracy --record
"$python" -m pytest -q tests/unit/assets/test_nano.py tests/unit/ci/test_accuracy.py \
    tests/model/test_nano.py
"$python" -m launch.serve --once --port "${PORT:-30000}" | sed -n '/^\[serve\] ready/,$p'
