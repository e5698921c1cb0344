"""The engine with its n-gram tables elsewhere, or in fp8, against the oracle.

On a CPU `auto` means host storage, which every other test of this folder runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longcat_kernels.row_layout import Format
from longcat_kernels.row_table import RowTable, quantise_fp8, quantise_int4, row_scales
from sglang_longcat.reference import ReferenceModel
from tests.harness import HarnessError, engine
from tests.model.scoring import Oracle, ask, assert_same


def test_tables_as_a_parameter(tiny: Path, prompts: dict[str, list[int]], oracle: Oracle) -> None:
    with engine(tiny, env={"LONGCAT_NGRAM_TABLES": "device"}) as llm:
        assert_same(ask(llm, list(prompts.values()), logprobs_from=0), oracle)
        assert "N-gram tables: device (LONGCAT_NGRAM_TABLES=device)" in llm.log


def rounded(table: torch.Tensor, kind: str) -> torch.Tensor:
    """What fp8 or int4 storage makes of a table's rows."""
    fp8 = quantise_fp8(table, row_scales(table))
    stored: dict[Format, torch.Tensor] = {"fp8": fp8, "int4": quantise_int4(table)}
    rows = RowTable(stored[kind], table.shape[1], torch.float32, kind)
    return rows.values(rows.storage)


@pytest.mark.parametrize("kind", ["fp8", "int4"])
@pytest.mark.parametrize("tp_size", [1, 2])
def test_quantised_tables(
    tiny: Path, prompts: dict[str, list[int]], oracle: Oracle, tp_size: int, kind: str
) -> None:
    """Exact against an oracle whose tables went through the format whole: red if ranks scale by
    their own columns, or a scale belongs to another row or group."""
    judge = Oracle(tiny)
    model = ReferenceModel.from_checkpoint(tiny)
    model.embedding.tables = [rounded(table, kind) for table in model.embedding.tables]
    judge.logits = model
    flags = {"tp_size": tp_size, "env": {"LONGCAT_NGRAM_TABLE_DTYPE": kind}}
    with engine(tiny, **flags) as llm:
        answers = ask(llm, list(prompts.values())[:6], logprobs_from=0)
        assert f"N-gram tables in {kind}: mean relative error" in llm.log
    assert_same(answers, judge)
    assert max(map(oracle.gap, answers)) > 0.01, "rounding made no difference"


def test_a_value_that_is_none_of_the_choices(tiny: Path) -> None:
    with (
        pytest.raises(HarnessError, match=r"LONGCAT_NGRAM_TABLES='hbm': expected one of auto"),
        engine(tiny, env={"LONGCAT_NGRAM_TABLES": "hbm"}),
    ):
        pass
