"""Turns of a conversation that start from what the turns before have left in the prefix cache.

Owns: how much of a turn is reused, with and without drafts, by page size. Each turn's prompt is the
whole conversation, as a client without a session sends it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_longcat.testing.engine_flags import nextn as drafting
from tests.harness import Engine, engine
from tests.model.scoring import EOS, Answer, Oracle, ask, assert_same, text

TURNS = 7
# Forces an EOS as soon as `min_new_tokens` allows one: the checkpoint never says it unasked.
SAYS_EOS = {"logit_bias": {str(EOS): 1000.0}, "ignore_eos": False}


def converse(llm: Engine, *, says_eos: bool) -> list[Answer]:
    """Answers of 13 tokens and more. The chat template ends an answer with EOS: either the model
    has said it, or the client puts it there because the answer was cut off."""
    prompt, answers = text(70, seed=9), []
    for turn in range(TURNS):
        length = 13 + 2 * turn
        eos = {**SAYS_EOS, "min_new_tokens": length - 1} if says_eos else {}
        (answer,) = ask(llm, [prompt], max_new_tokens=length, **eos)
        answers.append(answer)
        prompt = [*answer.sequence, *([] if says_eos else [EOS]), *text(20 + turn, seed=turn)[1:]]
    return answers


def reusable(answers: list[Answer], page_size: int) -> list[int]:
    """Tokens of each turn whose KV the turns before have computed, in whole pages. The last token
    of an answer has none: it was sampled, and never fed."""
    known = [0, *(len(answer.sequence) - 1 for answer in answers[:-1])]
    return [tokens // page_size * page_size for tokens in known]


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_a_turn_reuses_the_turns_before(checkpoint: Path, judge: Oracle, page_size: int) -> None:
    """Red if a page that drafts have touched is not kept, if KV of rejected drafts is kept as if it
    were the answer's, or if a turn after a cached answer is hashed without that answer's end.
    With NEXTN SGLang keys its cache by pairs of tokens, so that one token less is found."""
    reused = {}
    for name, flags in (("without", {}), ("with", drafting(3))):
        with engine(checkpoint, **flags, page_size=page_size) as llm:
            answers = converse(llm, says_eos=False)
        assert_same(answers, judge)
        reused[name] = [answer.meta["cached_tokens"] for answer in answers]
    assert reused["without"] == reusable(answers, page_size)
    lost = [a - b for a, b in zip(reused["without"], reused["with"], strict=True)]
    assert set(lost) <= {0, page_size}, (reused, lost)


@pytest.mark.parametrize("drafts", [{}, drafting(3)], ids=["without-drafts", "with-drafts"])
def test_answers_that_end_with_eos(checkpoint: Path, judge: Oracle, drafts: dict) -> None:
    """Red if the EOS that ended an answer, perhaps in the middle of a verify window, makes the next
    turn lose more of it than that one token, or be hashed across it. The logprobs that a forced EOS
    has are not the oracle's, so the tokens alone are compared."""
    with engine(checkpoint, **drafts) as llm:
        answers = converse(llm, says_eos=True)
    for answer in answers:
        assert answer.output[-1] == EOS
        assert answer.output[:-1] == judge.choices(answer)[:-1], answer.prompt
    cached = [answer.meta["cached_tokens"] for answer in answers]
    lost = [a - b for a, b in zip(reusable(answers, 1), cached, strict=True)]
    assert set(lost) <= ({0, 1} if drafts else {0}), lost
