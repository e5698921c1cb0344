"""Two ranks give the answers of one: tensor, expert and data parallelism, on gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scoring import Answer, Oracle, ask, assert_same

from harness import engine

TP2_NATS = 1e-4  # the sum over ranks is one more rounding of the same fp32 sums


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({}, id="tp2"),
        pytest.param({"ep_size": 2}, id="tp2-ep2"),
        pytest.param({"dp_size": 2, "enable_dp_attention": True}, id="tp2-dp2"),
    ],
)
def test_two_ranks_answer_as_one(
    tiny: Path, together: dict[str, Answer], oracle: Oracle, flags: dict[str, Any]
) -> None:
    """Red if the identity part or the word row is added by both ranks or by none, if a table slice
    or a projection row goes to the wrong rank, or if a data-parallel rank without requests (one
    prompt alone leaves it idle) breaks the sums of the other."""
    with engine(tiny, tp_size=2, **flags) as llm:
        answers = ask(llm, [one.prompt for one in together.values()], logprobs_from=0)
        alone = [
            ask(llm, [together[name].prompt], logprobs_from=0)[0]
            for name in ("1 tokens", "17 tokens", "EOS adjacent")
        ]
    assert_same([*answers, *alone], oracle)
    for found, wanted in zip(answers, together.values(), strict=True):
        assert found.output == wanted.output
        assert found.logprobs == pytest.approx(wanted.logprobs, rel=0, abs=TP2_NATS)
