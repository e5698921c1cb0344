"""Speculative decoding on a GPU, in bf16, with CUDA graphs of draft, verify and draft-extend.

bf16 may choose otherwise than the fp32 oracle where two tokens nearly tie, so a token counts only
where the oracle prefers its first choice by more than a nat (test_modes_gpu says why). The
checkpoint is the one whose drafts are right half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sglang_longcat.reference import ReferenceModel
from sglang_longcat.testing.engine_flags import nextn
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import engine
from tests.model.drafting import Drafter, predictable
from tests.model.penalties import PENALTIES, ask_penalised, penalised_rows
from tests.model.scoring import Answer, Oracle, ask, text
from tests.model.test_modes_gpu import ARMS, GPU, Arm, assert_right_tokens, assert_same_tokens

STEPS, NEW = 3, 24
PROMPTS = [text(length, seed=length) for length in (1, 2, 3, 5, 11, 17, 30, 40)]


@pytest.mark.gpu
@pytest.mark.parametrize("tables", ["device", "host"])
def test_drafts_are_verified_in_graphs(tiny: Path, tmp_path: Path, tables: str) -> None:
    """Red if a padded verify row, a rejected draft or the draft's graphs disturb a request's ring
    or KV, and if the draft accepts much less than the oracle's MTP layer would."""
    path = predictable(tiny, tmp_path / "predictable")
    flags = {
        **nextn(STEPS),
        "env": {"LONGCAT_NGRAM_TABLES": tables},
    }
    with engine(path, **GPU.flags, **flags) as llm:
        alone = [ask(llm, [prompt], max_new_tokens=NEW)[0] for prompt in PROMPTS[:3]]
        together = ask(llm, PROMPTS, max_new_tokens=NEW)
    assert_right_tokens([*alone, *together], Oracle(path), GPU.tie)
    assert_accepts(together, path)


def assert_accepts(answers: Sequence[Answer], path: Path) -> None:
    """The target has accepted about as many drafts as it would of the oracle's MTP layer."""
    drafter = Drafter(ReferenceModel.from_checkpoint(path))
    accepted = expected = 0
    for answer in answers:
        accepted += sum(i * n for i, n in enumerate(answer.meta["spec_correct_drafts_histogram"]))
        wanted = drafter.accepted(answer.prompt, answer.output, steps=STEPS)
        expected += sum(right * count for right, count in wanted.items())
    assert accepted > 0.8 * expected > 0


@pytest.mark.parametrize("arm", ARMS)
def test_block_fp8_without_and_with_drafts(tmp_path: Path, arm: Arm) -> None:
    """The same greedy tokens up to a tie. Red if a window of four tokens multiplies FP8 weights or
    scales otherwise than a decode step does, by more than the oracle finds close."""
    tiny = write_tiny(tmp_path / "fp8", TinyOptions(fp8=True, experts=8, zero_experts=4))
    path = predictable(tiny, tmp_path / "predictable")
    replies = []
    for flags in ({}, nextn(STEPS)):
        with engine(path, **arm.flags, **flags) as llm:
            replies.append(ask(llm, PROMPTS, max_new_tokens=NEW))
    plain, drafted = replies
    judge = Oracle(path)
    assert_right_tokens([*plain, *drafted], judge, arm.tie)
    for one, other in zip(plain, drafted, strict=True):
        assert_same_tokens(one, other, judge, arm.tie)
    assert_accepts(drafted, path)


@pytest.mark.gpu
def test_penalties_count_every_token_on_a_gpu(tiny: Path, tmp_path: Path) -> None:
    """Red if the hook that penalises a window token by token reads the wrong rows where overlap,
    graphs and CUDA tensors are real. Only choices that the oracle finds close may differ."""
    path = predictable(tiny, tmp_path / "predictable")
    with engine(path, **GPU.flags, **nextn(STEPS)) as llm:
        answers = ask_penalised(llm)
    judge, decided, total = Oracle(path), 0, 0
    for answer, wish in zip(answers, PENALTIES * 2):
        for token, row in zip(answer.output, penalised_rows(judge, answer, wish)):
            best = row.topk(2).values
            assert row[token] > best[0] - GPU.tie, wish
            decided, total = decided + bool(best[0] - best[1] > GPU.tie), total + 1
    assert decided > total / 10, "next to all choices were close"
