"""`benchmarks/scaling.py` plans what the GPUs allow, refuses the rest and tables what it has."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import RESULTS, scaling
from benchmarks import engine as engine_benchmark


def run(*words, monkeypatch, gpus=0):
    monkeypatch.setattr(scaling, "gpu_count", lambda: gpus)
    monkeypatch.setattr(sys, "argv", ["scaling.py", *words])
    scaling.main()


def plan(capsys, monkeypatch, *words):
    run("--out", "out", "--dry-run", *words, monkeypatch=monkeypatch)
    return capsys.readouterr().out.splitlines()


def test_commands_are_the_benchmarks_own(capsys, monkeypatch):
    """A flag or an arm that the benchmark has renamed."""
    lines = plan(capsys, monkeypatch, "--gpus", "8")
    assert len(lines) == 3 * (4 + 3)  # arms times sizes, the larger three with attention DP too
    for line in lines:
        words = shlex.split(line)
        assert words[1:3] == ["-m", "benchmarks.engine"]
        monkeypatch.setattr(sys, "argv", words[2:])
        args = engine_benchmark.parse()
        assert args.arms in engine_benchmark.ARMS
        flags = json.loads(args.engine)
        assert flags["tp_size"] == flags["ep_size"]
        assert Path(args.out).name.startswith(f"tp{flags['tp_size']}-ep{flags['ep_size']}")


def test_batches_without_room_are_left_out(capsys, monkeypatch):
    """134,634 tokens beside the tables on one H200, two million without; an 80 GB GPU holds no
    tables at all."""
    in_tree, device, host = plan(capsys, monkeypatch, "--gpus", "1")
    assert all("--batch 1,8 " in line for line in (in_tree, device))
    assert "--batch 1,8,64,256 " in host
    for line in plan(capsys, monkeypatch, "--gpus", "1", "--batch", "30,33,44"):
        fits = {"in-tree": "30", "device": "30,33,44", "host": "30,33,44"}
        assert f"--batch {fits[shlex.split(line)[4]]} " in line
    in_tree, device, host = plan(capsys, monkeypatch, "--gpus", "1", "--gpu", "H100-80G")
    assert in_tree == "# tp1-ep1-in-tree: no batch fits"
    assert device == "# tp1-ep1-device: no batch fits"
    assert "--batch 1,8 " in host


@pytest.mark.parametrize(
    ("gpus", "words", "says"),
    [
        (0, [], "CUDA driver shows none"),
        (2, ["--gpus", "4"], "shows 2"),
        (2, ["--sizes", "1,4"], "has 2 GPU"),
        (2, ["--gpus", "1", "--sizes", "2"], "has 1 GPU"),
        (8, ["--sizes", "3"], "expected some of"),
    ],
)
def test_refuses_what_the_machine_cannot_do(tmp_path, monkeypatch, gpus, words, says):
    """Nothing is measured, no directory is made."""
    with pytest.raises(SystemExit, match=says):
        run("--out", str(tmp_path / "out"), *words, monkeypatch=monkeypatch, gpus=gpus)
    assert not (tmp_path / "out").exists()


def test_table_of_what_is_there(tmp_path, monkeypatch, capsys):
    """Results of an earlier, interrupted run are kept; an arm that fails is named."""
    real = json.loads((RESULTS / "h200" / "tp2-ep2.json").read_text())
    (tmp_path / "arms").mkdir()
    for name in ("in-tree", "device"):
        new = {"tok_s": 1.0, "kv_tokens": 1, "used_gib": [9.0, 9.5]}
        rows = [row | new for row in real["results"][name]]
        kept = {**real, "command": real["commands"][0], "results": {name: rows}}
        (tmp_path / "arms" / f"tp2-ep2-{name}.json").write_text(json.dumps(kept))
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    words = ["--out", str(tmp_path), "--sizes", "2", "--gpu", "H200", "--no-dp"]
    run(*words, monkeypatch=monkeypatch, gpus=2)
    assert [command[command.index("--arms") + 1] for command in asked] == ["host"]
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert {line.count("|") for line in lines} == {len(scaling.COLUMNS) + 1}
    ratio = real["results"]["in-tree"][1]["tpot_ms"] / real["results"]["device"][1]["tpot_ms"]
    assert lines[6].startswith("| TP2 + EP2 | device | 8 | ")
    assert f"| {ratio:.2f} |" in lines[6]
    assert "9.0 to 9.5" in lines[6]
    assert lines[-1].startswith("| TP2 + EP2 | host | no result |")
    assert set(json.loads((tmp_path / "tp2-ep2.json").read_text())["results"]) == {
        "in-tree",
        "device",
    }
