from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"


TABLES = {
    "ngram_ids": ["ngram_ids"],
    "moe_router": ["moe_router", "moe_router_tokens"],
    "identity_experts": ["identity_experts"],
    "expert_finalize": ["expert_finalize"],
    "mla_decode": ["mla_decode"],
    "small_linear": ["small_linear"],
    "fp8_linear": ["fp8_linear"],
    "fp8_inputs": ["fp8_inputs_norm", "fp8_inputs_swiglu"],
    "mla_prologue": ["mla_prologue_store", "mla_prologue_store_fp8", "mla_prologue_absorb"],
}


@pytest.mark.parametrize("op", TABLES)
def test_the_benchmark_times_the_reference_on_a_cpu(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU columns need a GPU; this keeps shapes, inputs and the CSV from rotting until then."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module(f"bench_{op}")
    module.main(["--device", "cpu", "--quick", "--out", str(tmp_path)])
    for table in TABLES[op]:
        with (tmp_path / f"{table}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["implementation"], row["note"]) for row in rows] == [("reference", "")] * 2
        assert all(float(row["us"]) > 0 and row["torch"] for row in rows)
