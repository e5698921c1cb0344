from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"


@pytest.mark.parametrize(
    ("module", "op"),
    [
        ("ngram_ids", "ngram_ids"),
        ("moe_router", "moe_router"),
        ("moe_router", "moe_router_tokens"),
        ("identity_experts", "identity_experts"),
    ],
)
def test_the_benchmark_times_the_reference_on_a_cpu(
    module: str, op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU columns need a GPU; this keeps shapes, inputs and the CSV from rotting until then."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    importlib.import_module(f"bench_{module}").main(
        ["--device", "cpu", "--quick", "--out", str(tmp_path)]
    )
    with (tmp_path / f"{op}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["implementation"], row["note"]) for row in rows] == [("reference", "")] * 2
    assert all(float(row["us"]) > 0 and row["torch"] for row in rows)
