"""`python -m benchmarks.disaggregation` measures two workers through the real router, on a CPU.

Owns: that its flags, log lines and figures are SGLang's and the router's. The transport is that of
`tests/model/test_disaggregation.py`.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml

from sglang_longcat import recipes
from tests import ROOT, harness
from tests.model.test_disaggregation import ENV


def write_recipe(path, mode):
    flags = yaml.safe_load(recipes.find("cpu-tiny").file.read_text())
    path.write_text(yaml.safe_dump(flags | {"disaggregation-mode": mode}))
    return path


@pytest.mark.skipif(
    importlib.util.find_spec("sglang_router") is None,
    reason="sglang_router is not installed; docs/recipes.md has the command",
)
def test_two_workers_and_a_router_are_measured(tmp_path):
    """Red if a worker is not ours, if the router does not know both when the first run begins, if
    acceptance is not simulated, or if a run is not written."""
    out = tmp_path / "out" / "disaggregation.json"
    words = [sys.executable, "-m", "benchmarks.disaggregation", "--backend", "mooncake"]
    for mode in ("prefill", "decode"):
        words += [f"--{mode}", str(write_recipe(tmp_path / f"{mode}.yaml", mode))]
    words += ["--users", "1@2,2@4", "--input", "8", "--output", "4", "--out", str(out)]
    words += ["--port", str(harness.free_port()), "--bootstrap-port", str(harness.free_port())]
    words += ["--decode-log-interval", "1"]
    path = os.pathsep.join(filter(None, [ENV["PYTHONPATH"], os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=os.environ | ENV | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    result = json.loads(out.read_text())["results"]["disaggregated"]
    for mode in ("prefill", "decode"):
        names = [name.rpartition(".")[2] for name in result[mode]["class"]]
        assert names == ["LongcatFlashForCausalLM", "LongcatFlashForCausalLMNextN"]
        assert all(name.startswith("sglang_longcat.") for name in result[mode]["class"])
    assert [(row["users"], row["completed"]) for row in result["runs"]] == [(1, 2), (2, 4)]
    for row in result["runs"]:
        assert row["accept_length"] > 2
        assert min(row["tok_s"], row["tpot_ms"], row["ttft_ms"]) > 0
