"""What `benchmarks/int4.sh` says about its results."""

import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks import int4_goals
from sglang_longcat import recipes
from tests import ROOT

SCRIPT = (ROOT / "benchmarks" / "int4.sh").read_text()
ROW = {
    "batch": 4,
    "input": 4096,
    "tpot_ms": 5.0,
    "prefill_tok_s": 2e4,
    "kv_tokens": 24_000,
    "taken_gib": [23.0],
    "pinned_gib": 16.5,
}


@pytest.mark.parametrize(
    ("change", "met"),
    [
        ({}, True),
        ({"kv_tokens": 16_000}, False),
        ({"taken_gib": [24.1]}, False),
        ({"pinned_gib": 58.5}, False),
    ],
)
def test_a_goal_is_met_if_all_of_it_is(change, met, tmp_path):
    """Red if one of a goal's numbers is not looked at."""
    results = {"results": {"host": [ROW | change]}}
    (tmp_path / "24gb.json").write_text(json.dumps(results))
    (line,) = int4_goals.lines(tmp_path)
    assert ("-- met" in line, "MISSED" in line) == (met, not met)


def test_speed_has_no_verdict_and_steps_without_a_result_no_line(tmp_path):
    (tmp_path / "h200.json").write_text(json.dumps({"results": {"device": [ROW], "spec": []}}))
    (line,) = int4_goals.lines(tmp_path)
    assert line.startswith("h200")
    assert "TPOT 5.000 ms" in line
    assert "--" not in line


def test_script_and_goals_name_the_same_steps_and_sizes():
    """Red if a step has no goal, a capacity is another one than its goal's, or a recipe is gone."""
    steps = set(re.findall(r"^  (\w+)\)", SCRIPT, flags=re.MULTILINE)) - {"all"}
    assert steps == set(int4_goals.GOALS)
    small = re.findall(r"LONGCAT_GPU_MEMORY_MIB=(\d+) small ([a-z0-9-]+) (\w+)", SCRIPT)
    assert {step for *_, step in small} == {"24gb", "32gb", "48gb"}
    for mib, name, step in small:
        assert int4_goals.GOALS[step].taken_gib * 1024 == int(mib)
        assert recipes.find(name).suits


def started(tmp_path, **variables):
    """(arguments, environment) of the engine that the step 24gb starts. The interpreter is real but
    for the engine, which writes both down."""
    python, seen = tmp_path / "python", tmp_path / "seen"
    python.write_text(
        f"""#!/bin/sh
[ "$2" = benchmarks.engine ] || exec {sys.executable} "$@"
printf '%s\\n' "$@" > {seen}; env >> {seen}"""
    )
    python.chmod(0o755)
    paths = {"OUT": str(tmp_path / "out"), "PYTHON": str(python)}
    inherited = {name: value for name, value in os.environ.items() if "LONGCAT" not in name}
    command = ["bash", str(ROOT / "benchmarks/int4.sh"), "24gb"]
    paths["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    subprocess.run(command, env=inherited | paths | variables, cwd=ROOT, check=True)
    return seen.read_text().splitlines()


def test_a_small_gpu_has_its_recipes_flags_and_variables(tmp_path):
    """Red if the script measures another server than the recipe's."""
    recipe, lines = recipes.find("24gb-tp1-int4"), started(tmp_path)
    assert {f"{name}={value}" for name, value in recipe.switches.items()} <= set(lines)
    assert "LONGCAT_GPU_MEMORY_MIB=24564" in lines
    flags = json.loads(lines[lines.index("--engine") + 1])
    assert flags.items() <= recipe.flags.items()
    assert {"chunked_prefill_size", "max_running_requests", "context_length"} <= flags.keys()


def test_the_callers_variables_win(tmp_path):
    lines = started(tmp_path, LONGCAT_NGRAM_TABLE_DTYPE="fp8")
    assert "LONGCAT_NGRAM_TABLE_DTYPE=fp8" in lines
