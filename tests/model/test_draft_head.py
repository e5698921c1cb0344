"""Drafts chosen with a block-FP8 copy of the head: outputs stay, and the oracle's MTP layer with
such a head foretells what is accepted.

Real engines on the CPU, where the copy is multiplied in plain torch. Which calls read it is decided
in tests/unit/speculation/test_draft_head.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_longcat.reference import ReferenceModel
from sglang_longcat.testing.engine_flags import nextn as drafting
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import engine
from tests.model.drafting import Drafter, predictable
from tests.model.scoring import Oracle, ask, assert_same, text
from tests.model.test_speculative import assert_drafted

FP8 = {"LONGCAT_DRAFT_HEAD": "fp8"}
PROMPTS = [text(length, seed=length) for length in (1, 2, 5, 11, 30)]


@pytest.fixture
def kept(tmp_path: Path) -> torch.Tensor:
    """Tokens that may be drafted, of the 2,048 that there are."""
    kept = torch.arange(2048)[torch.arange(2048) % 5 > 0]
    torch.save(kept, tmp_path / "kept.pt")
    return kept


@pytest.mark.parametrize(
    "flags",
    [{}, {"tp_size": 2}, {"tp_size": 2, "attn_dp_size": 2}],
    ids=["tp1", "tp2", "tp2-dp2"],
)
def test_output_stays_and_drafts_are_the_copys(checkpoint: Path, flags: dict[str, Any]) -> None:
    """Red if the copy reaches the target's own logits, is of another rank's rows, is empty, or if a
    block has another block's scale."""
    with engine(checkpoint, **drafting(3), **flags, env=FP8) as llm:
        answers = ask(llm, PROMPTS, max_new_tokens=20)
        rows = 2048 // flags.get("tp_size", 1)
        assert f"Draft head: block-FP8 copy of {rows:,} rows" in llm.log
    assert_same(answers, Oracle(checkpoint))
    reference = ReferenceModel.from_checkpoint(checkpoint)
    assert_drafted(answers, Drafter(reference, fp8_head=True), steps=3)


def test_copy_of_a_reduced_vocabulary(checkpoint: Path, kept: torch.Tensor, tmp_path: Path) -> None:
    """Red if the copy has the rows of all tokens, or of one rank's slice. Its last block has
    fewer rows."""
    flags = {"tp_size": 2, "speculative_token_map": str(tmp_path / "kept.pt")}
    with engine(checkpoint, **drafting(3), **flags, env=FP8) as llm:
        answers = ask(llm, PROMPTS, max_new_tokens=20)
        assert f"Draft head: block-FP8 copy of {len(kept):,} rows" in llm.log
    assert_same(answers, Oracle(checkpoint))
    reference = ReferenceModel.from_checkpoint(checkpoint)
    assert_drafted(answers, Drafter(reference, vocabulary=kept, fp8_head=True), steps=3)


@pytest.mark.parametrize("reduced", [False, True], ids=["all-tokens", "reduced"])
def test_new_weights_reach_the_copy(
    checkpoint: Path, kept: torch.Tensor, tmp_path: Path, reduced: bool
) -> None:
    """Red if drafts are chosen with the head that was there before an update: hardly one is then
    accepted. The other checkpoint has another head."""
    plain = write_tiny(tmp_path / "plain", TinyOptions(seed=1))
    other = predictable(plain, tmp_path / "other")
    flags = {"speculative_token_map": str(tmp_path / "kept.pt")} if reduced else {}
    with engine(checkpoint, **drafting(3), **flags, env=FP8) as llm:
        done, message, _ = llm.call("update_weights_from_disk", str(other))
        assert done, message
        answers = ask(llm, PROMPTS, max_new_tokens=20)
    assert_same(answers, Oracle(other))
    vocabulary = kept if reduced else None
    reference = ReferenceModel.from_checkpoint(other)
    drafter = Drafter(reference, vocabulary=vocabulary, fp8_head=True)
    assert_drafted(answers, drafter, steps=3)
