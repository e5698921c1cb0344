"""Two, four and eight ranks give the answers of one: tensor, expert and data parallelism, on gloo.

The small checkpoint's sizes divide by eight: 8 heads, 32 experts, tables of 64 columns. Eight ranks
take 30 s and 4 GB on two cores that do nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.harness import engine
from tests.model.scoring import Answer, Oracle, ask, assert_same

NATS = 1e-4  # the sum over ranks is one more rounding of the same fp32 sums
SLOW_START_S = 400  # of eight ranks while others use the same two cores: 120 s seen


def shares(*, tp: int = 1, ep: int = 1, dp: int = 1) -> dict[str, Any]:
    """Engine arguments; dp > 1: attention in `dp` groups of tp / dp ranks."""
    return {"tp_size": tp, "ep_size": ep, "attn_dp_size": dp}


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(shares(tp=2), id="tp2"),
        pytest.param(shares(tp=2, ep=2), id="tp2-ep2"),
        pytest.param(shares(tp=2, dp=2), id="tp2-dp2"),
        pytest.param(shares(tp=2, ep=2, dp=2), id="tp2-ep2-dp2"),
        pytest.param(shares(tp=4, ep=2, dp=2), id="tp4-ep2-dp2"),
        pytest.param(shares(tp=8, ep=8), id="tp8-ep8"),
        pytest.param(shares(tp=8, ep=8, dp=8), id="tp8-ep8-dp8"),
    ],
)
def test_ranks_answer_as_one(
    tiny: Path, together: dict[str, Answer], oracle: Oracle, flags: dict[str, Any]
) -> None:
    """Red if the identity part or the word row is added by every rank or by none, if a table slice
    or a projection row goes to the wrong rank, or if a data-parallel rank without requests (one
    prompt alone leaves the others idle) breaks the sums of the rest."""
    with engine(tiny, timeout=SLOW_START_S, **flags) as llm:
        answers = ask(llm, [answer.prompt for answer in together.values()], logprobs_from=0)
        alone = [
            ask(llm, [together[name].prompt], logprobs_from=0)[0]
            for name in ("1 tokens", "17 tokens", "EOS adjacent")
        ]
    assert_same([*answers, *alone], oracle)
    for answer, wanted in zip(answers, together.values(), strict=True):
        assert answer.output == wanted.output
        assert answer.logprobs == pytest.approx(wanted.logprobs, rel=0, abs=NATS)
