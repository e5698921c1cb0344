from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.tune.table import write
from longcat_kernels.packed_linear import configs as packed_linear
from longcat_kernels.small_experts import configs as small_experts
from longcat_kernels.small_linear import configs as small_linear


@pytest.mark.parametrize(
    "configs", [small_linear, small_experts, packed_linear], ids=lambda c: c.__name__
)
def test_entries_that_were_not_tuned_stay(configs, tmp_path: Path) -> None:
    """Red if a run over a few numbers of tokens drops the others, or writes another layout."""
    path = tmp_path / "configs.json"
    write(path, {}, configs.TABLE)
    assert path.read_text() == configs.TABLE.read_text()
    table = json.loads(path.read_text())
    key = next(iter(table))
    write(path, {key: {"1": None}}, configs.TABLE)
    assert json.loads(path.read_text()) == {**table, key: {**table[key], "1": None}}
