"""What `benchmarks/start_up.py` makes of an engine's log. No engine of that size runs here."""

import inspect
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import sglang
from sglang.srt.mem_cache import kv_cache_configurator
from sglang.srt.model_executor import model_runner
from sglang.srt.model_executor.model_runner_components import cuda_graph_setup

from benchmarks import start_up

LOG = [
    (9.0, "[2026-11-29 10:00:00] Load weight begin. avail mem=139 GB"),
    (15.0, "[2026-11-29 10:00:06] Load weight end. elapsed=6.01 s, type=LongcatFlashForCausalLM"),
    (16.5, "[2026-11-29 10:00:07] Memory pool end. avail mem=9.1 GB"),
    (17.0, "[2026-11-29 10:00:08] Triton kernels: 47 variants ready in 0.40 s"),
    (20.0, "DeepGEMM: compiled ahead in 11.2 s, 44 of them new; the start waited 3.0 s"),
    (20.5, "Capture target verify CUDA graph begin. backend=full, avail mem=9.00 GB"),
    (28.5, "Capture target verify CUDA graph end. bs=[1, 2], elapsed=8.00 s"),
    (29.0, "Load weight end. elapsed=0.50 s, type=LongcatFlashForCausalLMNextN"),
    (29.5, "Memory pool end. avail mem=8.0 GB"),
    (30.0, "Capture draft CUDA graph begin."),
    (31.5, "Capture draft CUDA graph end. elapsed=1.50 s"),
    (33.0, "engine up in 32.5 s"),
    (34.25, "first answer"),
]


def test_each_phase_ends_at_its_line():
    """Red if a draft's lines, which come later, end a phase of the target."""
    assert start_up.phases(LOG) == {
        "python": 9.0,
        "weights": 6.0,
        "KV cache": 1.5,
        "kernels": 4.0,
        "graphs": 11.0,
        "ready": 1.5,
        "answer": 1.25,
        "total": 34.25,
    }


def test_a_log_without_a_line_is_an_error():
    with pytest.raises(ValueError, match="phase KV cache: no line of the log matches"):
        start_up.phases([line for line in LOG if "Memory pool" not in line[1]])


def test_sglang_still_logs_the_lines():
    """Red if an SGLang release words a line differently, before somebody pays for a GPU run."""
    assert "Load weight begin." in inspect.getsource(model_runner)
    assert "Load weight end. " in inspect.getsource(model_runner)
    assert "Memory pool end. " in inspect.getsource(kv_cache_configurator)
    graphs = inspect.getsource(cuda_graph_setup)
    assert '"cuda": "CUDA graph"' in graphs
    assert 'f"Capture {capture_name} {graph_backend[model_runner.device]} begin. "' in graphs
    assert 'f"Capture {capture_name} {graph_backend[model_runner.device]} end. "' in graphs


def test_only_warm_arms_reuse_caches(tmp_path):
    """Red if arms with and without the switch share a cache: the second would always be warm."""
    cold = start_up.environment("cold", tmp_path)
    warm = start_up.environment("warm", tmp_path)
    parallel = start_up.environment("cold-parallel", tmp_path)
    for name in start_up.CACHES:
        assert cold[name] == warm[name] != parallel[name]
    assert (warm["LONGCAT_PARALLEL_COMPILE"], parallel["LONGCAT_PARALLEL_COMPILE"]) == ("0", "1")
    with pytest.raises(SystemExit, match=r"warm-parallel: .* expected the arm cold-parallel"):
        start_up.environment("warm-parallel", tmp_path / "other")
    with pytest.raises(FileExistsError):
        start_up.environment("cold", tmp_path)


def test_unknown_arms_are_named(capsys):
    with pytest.raises(SystemExit):
        start_up.parse(["--arms", "cold,hot"])
    assert "--arms hot: expected some of cold, warm" in capsys.readouterr().err


def test_the_table_has_a_row_for_each_arm():
    row = {"seconds": start_up.phases(LOG)}
    head, _, *rows = start_up.table({"cold": row, "warm": row}).splitlines()
    assert head.startswith("| arm | python | weights |")
    assert rows[0] == "| cold | 9.0 | 6.0 | 1.5 | 4.0 | 11.0 | 1.5 | 1.2 | 34.2 |"


ROUTING = "dummy routing: 14 routers of {}.LongcatFlashForCausalLM"


@pytest.fixture
def interpreter(monkeypatch, tmp_path):
    """Stands in for Python: prints the log of a start, with this model class."""

    def say(module):
        script = tmp_path / "python"
        lines = [ROUTING.format(module), *(text for _, text in LOG)]
        script.write_text("#!/bin/sh\nprintf '%s\\n' " + shlex.join(lines))
        script.chmod(0o755)

    monkeypatch.setattr(start_up.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(start_up, "versions", lambda: {"gpu": "none"})
    return say


def test_a_run_measures_its_arms_and_stores_them(interpreter, tmp_path, capsys):
    interpreter("sglang_longcat.models.longcat_flash")
    out = tmp_path / "out.json"
    start_up.main(["--arms", "cold,warm", "--out", str(out)])
    report = json.loads(out.read_text())
    assert list(report["cold"]["seconds"]) == [*(name for name, _, _ in start_up.ENDS), "total"]
    assert report["warm"]["notes"][1] == LOG[4][1]
    assert capsys.readouterr().out.splitlines()[-1].startswith("| warm | ")


def test_another_model_class_ends_the_run(interpreter):
    """Red if a start of the in-tree class could be taken for ours."""
    interpreter("sglang.srt.models.longcat_flash")
    with pytest.raises(SystemExit, match=r"expected sglang_longcat\.models\.longcat_flash\*"):
        start_up.main(["--arms", "cold"])


def test_the_child_starts_a_block_fp8_engine(monkeypatch, tmp_path, capsys):
    given, requests = {}, []

    def engine(**arguments):
        given.update(arguments)
        return SimpleNamespace(
            generate=lambda **request: requests.append(request), shutdown=lambda: None
        )

    for name, value in start_up.environment("cold", tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sglang, "Engine", engine)
    start_up.main(["--child", "--batch", "64", "--engine", '{"tp_size": 2}'])
    config = json.loads(Path(given["model_path"], "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    assert (given["cuda_graph_max_bs_decode"], given["tp_size"]) == (64, 2)
    assert len(requests) == 1
    assert "first answer" in capsys.readouterr().out.splitlines()
