"""A small checkpoint of several files through the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from sglang_longcat.__main__ import main
from sglang_longcat.checkpoint.check import check_checkpoint, check_draft
from sglang_longcat.checkpoint.headers import read_header, read_index
from sglang_longcat.config import LongcatConfig
from sglang_longcat.quantiser import convert, rounding
from sglang_longcat.testing.tiny import TinyOptions, write_tiny

Capture = pytest.CaptureFixture[str]
SIZES = TinyOptions(layers=1, experts=4, zero_experts=2, topk=2, vocab=512, shard_mb=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("quantise") / "tiny", SIZES)


def test_whole(source: Path, tmp_path: Path, capsys: Capture) -> None:
    """Red if the result lacks a tensor or a file, changes one that stays, or goes unreported."""
    out = tmp_path / "out"
    assert main(["quantize", str(source), str(out), "--mtp", "--asymmetric"]) == 0
    check_checkpoint(out, LongcatConfig.from_dir(out))
    check_draft(out, LongcatConfig.from_dir(out))
    before, after = tensors(source), tensors(out)
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after)
    assert {name.rpartition(".")[2] for name in before.keys() - after} == {"weight"}
    assert not any("table" in name or "embed" in name for name in before.keys() - after)
    assert read_index(out).keys() == after.keys()
    assert {file.name for file in out.iterdir()} == {file.name for file in source.iterdir()}
    printed = capsys.readouterr().out
    assert "with zero points" in printed
    assert "Peak memory" in printed


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in path.glob("*.safetensors") for n, t in load_file(file).items()}


class Usage(NamedTuple):
    total: int
    free: int


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "int3"], "invalid choice: 'int3'"),
        (["--group-size", "100"], "invalid choice: 100"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
    ],
)
def test_wrong_flags(
    flags: list[str], message: str, source: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert refused([str(source), str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err


def refused(arguments: list[str]) -> object:
    try:
        return main(["quantize", *arguments])
    except SystemExit as error:
        return error.code


def test_out_exists(source: Path, tmp_path: Path, capsys: Capture) -> None:
    """Red if files of somebody are overwritten."""
    (tmp_path / "mine").write_text("")
    assert refused([str(source), str(tmp_path)]) == 2
    assert "exists and is not an empty directory" in capsys.readouterr().err


def test_out_in_the_source(source: Path, capsys: Capture) -> None:
    """Red if the source gets a second checkpoint, which a server would read with it."""
    assert refused([str(source), str(source / "int4")]) == 2
    assert "expected a directory outside of the source" in capsys.readouterr().err
    assert not any(file.is_dir() for file in source.iterdir())


def test_quantised_already(tmp_path: Path, capsys: Capture) -> None:
    from dataclasses import replace

    path = write_tiny(tmp_path / "fp8", replace(SIZES, fp8=True))
    assert refused([str(path), str(tmp_path / "out")]) == 2
    assert "is quantised already (block FP8)" in capsys.readouterr().err


def test_disk_is_full(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """Red if the disk fills up after an hour, instead of the error at once."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 20))
    assert refused([str(source), str(tmp_path / "out")]) == 2
    assert "GB free; the 4-bit checkpoint needs" in capsys.readouterr().err


def test_size_is_known_before(source: Path, tmp_path: Path) -> None:
    """Red if the disk that is asked for is not what is written."""
    job = convert.prepare(source, tmp_path / "out", convert.Options())
    report = convert.convert(job, threads=1, step=lambda size: None, started=lambda name: None)
    assert report.bytes_written == pytest.approx(convert._bytes_of(job.selection), rel=0.02)
    assert report.bytes_read == sum(file.stat().st_size for file in source.glob("*.safetensors"))


def test_library_is_missing(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setitem(sys.modules, "auto_round.utils.model_free_utils", None)
    assert refused([str(source), str(tmp_path / "out")]) == 2
    assert "pip install 'sglang-longcat[quantize]'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_cut_short(
    kind: type[BaseException],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """Red if a run that ends early leaves anything, or if the next one does not start afresh."""
    out, done = tmp_path / "out", []

    def fail(module: str, *args: object) -> float:
        done.append(module)
        if len(done) > 5:
            raise kind("cut")
        return 0.1

    with monkeypatch.context() as patch:
        patch.setattr(rounding, "relative_error", fail)
        assert refused([str(source), str(out), "--threads", "1"]) == (
            130 if kind is KeyboardInterrupt else 2
        )
    assert list(tmp_path.iterdir()) == []
    message = "out is not written" if kind is KeyboardInterrupt else "error: cut"
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_killed(source: Path, tmp_path: Path, capsys: Capture) -> None:
    """Red if what a killed run leaves loads, or stops the next run, or if a user's own directory is
    taken for it."""
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "left").write_text("")
    assert main(["quantize", str(source), str(tmp_path / "out")]) == 2
    assert "not of this tool" in capsys.readouterr().err.replace("\n", " ")
    assert (partial / "left").exists()
    (partial / convert._MARK).touch()
    assert main(["quantize", str(source), str(tmp_path / "out")]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "left").exists()


def test_a_link_is_followed(source: Path, tmp_path: Path) -> None:
    """Red if the whole run is thrown away because its result cannot replace a link."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    assert main(["quantize", str(source), str(tmp_path / "out")]) == 0
    assert (tmp_path / "elsewhere" / "config.json").exists()
    assert (tmp_path / "out").is_symlink()


_MEASURE = """
import resource, sys, json
from pathlib import Path
from sglang_longcat.quantiser import convert
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
job = convert.prepare(Path(sys.argv[1]), Path(sys.argv[2]), convert.Options())
before = peak()
convert.convert(job, threads=1, step=lambda size: None, started=lambda name: None)
print(json.dumps([before, peak()]))
"""


def test_memory(tmp_path: Path) -> None:
    """Red if the checkpoint is held in memory: of 400 MB in 25 files at most a third is, together
    with what torch allocates at its first use."""
    sizes = TinyOptions(layers=4, expert_ffn=512, shard_mb=16)
    source = write_tiny(tmp_path / "large", sizes)
    total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    assert len(list(source.glob("*.safetensors"))) >= 10
    largest = max(e.end for f in source.glob("*.safetensors") for e in read_header(f).values())
    command = [sys.executable, "-c", _MEASURE, str(source), str(tmp_path / "out")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after = json.loads(output.splitlines()[-1])
    assert after - before < total / 3
    assert largest < total / 5
