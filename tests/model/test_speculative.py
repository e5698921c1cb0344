"""Speculative decoding says what greedy decoding says, and accepts what the oracle's MTP would.

Real engines with SGLang's own speculative worker, on the CPU. Most tests use a checkpoint whose
drafts are right half of the time (`drafting.predictable`), so that windows of every accepted length
occur. Owns: losslessness in every scheduling mode, acceptance, the distribution of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from drafting import Drafter, predictable
from scoring import NATS, Answer, Oracle, ask, assert_same, text

from harness import HarnessError, engine
from sglang_longcat.reference import ReferenceModel

NEXTN = {"speculative_algorithm": "NEXTN", "speculative_eagle_topk": 1}


def drafting(steps: int) -> dict[str, Any]:
    return {
        **NEXTN,
        "speculative_num_steps": steps,
        "speculative_num_draft_tokens": steps + 1,
    }


@pytest.fixture(scope="session")
def checkpoint(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predictable(tiny, tmp_path_factory.mktemp("drafting") / "predictable")


@pytest.fixture(scope="session")
def judge(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> ReferenceModel:
    return ReferenceModel.from_checkpoint(checkpoint)


def accepted(answer: Answer) -> list[int]:
    """How many verifications accepted 0, 1, 2, ... drafts."""
    histogram: list[int] = answer.meta["spec_correct_drafts_histogram"]
    return histogram


def assert_drafted(answers: Sequence[Answer], drafter: Drafter, *, steps: int) -> None:
    for one in answers:
        found = accepted(one) + [0] * (steps + 1 - len(accepted(one)))
        assert found == drafter.histogram(one.prompt, one.output, steps=steps), one.prompt


def test_every_prompt_of_the_random_checkpoint(
    tiny: Path, prompts: dict[str, list[int]], oracle: Oracle
) -> None:
    """Red if a verified window is hashed with a rejected draft, with the window before it, or with
    another request's: here nearly every draft is rejected. EOS in and around the look-back."""
    with engine(tiny, **drafting(3)) as llm:
        assert_same(ask(llm, list(prompts.values()), logprobs_from=0), oracle)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_acceptance(
    checkpoint: Path, judge: Oracle, reference: ReferenceModel, steps: int
) -> None:
    """Red if the draft reads another hidden state than the target's final-normed one, drafts from
    the wrong embedding, position or KV, or keeps KV of rejected drafts: then it accepts other
    numbers of tokens than the oracle's MTP head. And if anything else than the target decides."""
    prompts = [text(length, seed=length) for length in (1, 2, 5, 11, 30)]
    with engine(checkpoint, **drafting(steps)) as llm:
        answers = ask(llm, prompts, max_new_tokens=20)
    assert_same(answers, judge)
    assert_drafted(answers, Drafter(reference), steps=steps)
    assert sum(sum(accepted(one)[1:]) for one in answers) >= 10, "hardly a draft was right"
