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

from benchmarks import disaggregation
from launch import gpus
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


@pytest.mark.parametrize(
    ("shown", "expected"), [("4,5", ["4", "5"]), ("3", ["3", "3"]), (None, ["0", "0"])]
)
def test_each_worker_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, expected: list[str]
) -> None:
    """Red if a machine with one GPU gives the decode worker none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.setattr(gpus, "gpu_count", lambda: 1)
    assert [disaggregation.variables(gpu)["CUDA_VISIBLE_DEVICES"] for gpu in (0, 1)] == expected
