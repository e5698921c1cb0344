"""The engine with its n-gram tables elsewhere, or in fp8, against the oracle.

On a CPU `auto` means host storage, which every other test of this folder runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longcat_kernels.ngram import reference
from longcat_kernels.row_table import RowTable, quantise, row_scales
from sglang_longcat.reference import ReferenceModel
from tests.harness import HarnessError, engine
from tests.model.scoring import Oracle, ask, assert_same


def test_tables_as_a_parameter(tiny: Path, prompts: dict[str, list[int]], oracle: Oracle) -> None:
    with engine(tiny, env={"LONGCAT_NGRAM_TABLES": "device"}) as llm:
        assert_same(ask(llm, list(prompts.values()), logprobs_from=0), oracle)
        assert "N-gram tables: device (LONGCAT_NGRAM_TABLES=device)" in llm.log


def rounded(table: torch.Tensor) -> torch.Tensor:
    """What fp8 storage makes of a table's rows."""
    rows = RowTable(quantise(table, row_scales(table)), table.shape[1], torch.float32)
    return reference.gather(torch.arange(len(table))[:, None], rows)


@pytest.mark.parametrize("tp_size", [1, 2])
def test_fp8_tables(
    tiny: Path, prompts: dict[str, list[int]], oracle: Oracle, tp_size: int
) -> None:
    """Exact against an oracle whose tables went through fp8 whole: red if ranks scale by their own
    columns, or a scale belongs to another row."""
    judge = Oracle(tiny)
    model = ReferenceModel.from_checkpoint(tiny)
    model.embedding.tables = [rounded(table) for table in model.embedding.tables]
    judge.logits = model
    flags = {"tp_size": tp_size, "env": {"LONGCAT_NGRAM_TABLE_DTYPE": "fp8"}}
    with engine(tiny, **flags) as llm:
        answers = ask(llm, list(prompts.values())[:6], logprobs_from=0)
        assert "N-gram tables in fp8: mean relative error" in llm.log
    assert_same(answers, judge)
    assert max(map(oracle.gap, answers)) > 0.01, "rounding made no difference"


def test_a_value_that_is_none_of_the_choices(tiny: Path) -> None:
    with (
        pytest.raises(HarnessError, match=r"LONGCAT_NGRAM_TABLES='hbm': expected one of auto"),
        engine(tiny, env={"LONGCAT_NGRAM_TABLES": "hbm"}),
    ):
        pass
