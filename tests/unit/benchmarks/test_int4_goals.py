"""What `benchmarks/int4.sh` says about its results."""

import json
import re

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
    sizes = re.findall(r"LONGCAT_GPU_MEMORY_MIB=(\d+)[\s\S]*?engine (\w+)", SCRIPT)
    assert {step for _, step in sizes} == {"24gb", "32gb", "48gb"}
    for mib, step in sizes:
        assert int4_goals.GOALS[step].taken_gib * 1024 == int(mib)
    for name in re.findall(r"\$\(flags ([a-z0-9-]+)\)", SCRIPT):
        assert recipes.find(name).suits
