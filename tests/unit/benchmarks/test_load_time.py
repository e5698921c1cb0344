"""The time to load a checkpoint is taken with the real iterator and tables: it has to run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import load_time
from sglang_longcat.testing.tiny import TinyOptions, write_tiny


def test_each_way_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red if the tables' arguments or the names of their tensors change."""
    write_tiny(tmp_path, TinyOptions())
    load_time.main([str(tmp_path)])
    timed = re.findall(r"(cold|warm) (files alone|checkpoint): [\d.]+ s", capsys.readouterr().out)
    assert timed == [(c, w) for c in ("cold", "warm") for w in ("files alone", "checkpoint")]


def test_no_checkpoint_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_time.main([str(tmp_path)])
    assert "no safetensors" in capsys.readouterr().err
