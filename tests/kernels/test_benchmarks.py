from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernels import timing

TABLES = {
    "ngram_ids": ["ngram_ids"],
    "moe_router": ["moe_router", "moe_router_tokens"],
    "identity_experts": ["identity_experts"],
    "expert_finalize": ["expert_finalize"],
    "mla_decode": ["mla_decode", "mla_decode_fp8_rows", "mla_decode_long"],
    "kv_expand": ["kv_expand"],
    "kv_store": ["kv_store"],
    "small_linear": ["small_linear"],
    "fp8_linear": ["fp8_linear"],
    "packed_linear": ["packed_linear"],
    "fp8_inputs": ["fp8_inputs_norm", "fp8_inputs_swiglu"],
    "mla_prologue": [
        "mla_prologue_store",
        "mla_prologue_store_fp8",
        "mla_prologue_store_fp8_rows",
        "mla_prologue_absorb",
    ],
}


@pytest.mark.parametrize("op", TABLES)
def test_the_benchmark_times_the_reference_on_a_cpu(op: str, tmp_path: Path) -> None:
    """Red if shapes, inputs or the CSV break. The columns of GPU implementations need a GPU."""
    module = importlib.import_module(f"benchmarks.kernels.{op}")
    module.main(["--device", "cpu", "--quick", "--out", str(tmp_path)])
    for table in TABLES[op]:
        with (tmp_path / f"{table}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["implementation"], row["note"]) for row in rows] == [("reference", "")] * 2
        assert all(float(row["us"]) > 0 and row["torch"] for row in rows)


def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path: Path) -> None:
    """Red if rows are written at the end only: a time limit once cost five operations' tables."""

    def prepare(case: Any, copy: int) -> Any:
        if case.shape == "third":
            raise KeyboardInterrupt
        return lambda: None

    cases = [timing.Case(shape, 1, bytes=1, flops=1) for shape in ("first", "second", "third")]
    options = timing.parse("A table.", ["--device", "cpu", "--out", str(tmp_path)])
    plain = timing.Implementation("reference", prepare, cuda_only=False)
    with pytest.raises(KeyboardInterrupt):
        timing.run("cut_off", cases, [plain], options)
    with (tmp_path / "cut_off.csv").open() as file:
        assert [row["shape"] for row in csv.DictReader(file)] == ["first", "second"]
