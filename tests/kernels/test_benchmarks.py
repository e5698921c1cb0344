from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"


@pytest.mark.parametrize("op", ["ngram_ids", "moe_router", "identity_experts", "small_linear"])
def test_the_benchmark_times_the_reference_on_a_cpu(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU columns need a GPU; this keeps shapes, inputs and the CSV from rotting until then."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module(f"bench_{op}")
    module.main(["--device", "cpu", "--quick", "--out", str(tmp_path)])
    with (tmp_path / f"{op}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["implementation"], row["note"]) for row in rows] == [("reference", "")] * 2
    assert all(float(row["us"]) > 0 and row["torch"] for row in rows)
