"""`--kv-cache-dtype fp8_e4m3` on a Hopper GPU, with CUDA graphs, against the rounding oracle.

Both round all keys, but bf16 moves some values to the next FP8 value, and that moves all that
follows: SGLang's CPU engine in bf16, asked the same, is 0.13 nats from this oracle on average (0.04
without FP8 rows). It takes another token in 3 of 394 places where the oracle prefers its own by
more than a nat. So bounds are on the average and on the share of such places. They were measured
with the oracle in bf16 against itself in fp32.

Four engines, each with several modes at once: one takes a minute to start. What is in no engine
here is in `test_fp8_kv_cache` on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest

from longcat_kernels import kv_rows
from sglang_longcat.testing.engine_flags import nextn
from tests.harness import engine
from tests.model.drafting import predictable
from tests.model.scoring import Answer, Oracle, ask, text
from tests.model.test_fp8 import write_fp8
from tests.model.test_fp8_kv_cache import ROW, uneven
from tests.model.test_modes_gpu import GPU, NEW, OFF, ON, assert_right_tokens, gaps, prompts
from tests.model.test_speculative_gpu import assert_accepts

pytestmark = pytest.mark.gpu
FLAGS = {**GPU.flags, "attention_backend": "fa3", "kv_cache_dtype": "fp8_e4m3"}
# For up to eight requests. Prefixes come in several chunks, whose shares of a softmax are merged.
SMALL_CHUNKS = {"SGLANG_MAX_KV_CHUNK_CAPACITY": "64"}


class Bounds(NamedTuple):
    """nats: mean |engine - oracle| of logprobs. others: share of tokens that are not the oracle's
    first choice, of those where it prefers that by a nat."""

    nats: float
    others: float


# Seen: 0.13 and 1 %. With scales of other tokens 1.4 and 65 %, of other quarters 3.8 and 95 %.
BF16 = Bounds(nats=0.2, others=0.03)
# Seen, with activations in FP8 as block-FP8 layers have them: 0.38 and 15 %, without FP8 rows 0.28
# and 5 %. With scales of other tokens 1.6 and 78 %, of other quarters 4.4 and 100 %.
BLOCK_FP8 = Bounds(nats=0.6, others=0.25)


@pytest.fixture(scope="module")
def lopsided(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven(tiny, tmp_path_factory.mktemp("fp8-rows") / "uneven")


@pytest.fixture(scope="module")
def judges() -> Callable[[Path], Oracle]:
    """Engines give much the same texts, and an oracle remembers those that it has read."""
    return cache(lambda path: Oracle(path, cache=kv_rows.rounded))


def answers(path: Path, env: dict[str, str], **flags: Any) -> tuple[list[Answer], str]:
    """Three times, and the log: together, without logprobs, because SGLang mixes no chunks with
    them; with those of the prompt, which leaves the radix cache out; and one by one, when most of
    a prompt comes from the radix cache."""
    with engine(path, **FLAGS, **flags, env=env) as llm:
        plain = ask(llm, prompts(), logprobs_from=None, max_new_tokens=NEW)
        scored = ask(llm, prompts(), logprobs_from=0, max_new_tokens=NEW)
        alone = [ask(llm, [prompt], max_new_tokens=NEW)[0] for prompt in prompts()]
        assert f"FP8 rows of {ROW} bytes: KV Cache is allocated" in llm.log
        return [*plain, *scored, *alone], llm.log


def check(replies: Sequence[Answer], oracle: Oracle, bounds: Bounds = BF16) -> None:
    """Prints what was seen, because a bound that is met says nothing about how narrowly."""
    off = mean(gap for reply in replies for gap in oracle.gaps(reply))
    decided = [
        token == choice
        for reply in replies
        for token, choice, gap in zip(reply.output, oracle.choices(reply), gaps(oracle, reply))
        if gap >= GPU.tie
    ]
    print(f"{off:.3f} nats; {decided.count(False)} of {len(decided)} decided tokens are others")
    assert off < bounds.nats
    assert decided.count(False) <= bounds.others * len(decided)
    assert len(decided) > len(replies) * NEW / 4, "hardly a token was decided"


def assert_cached(replies: Sequence[Answer]) -> None:
    assert max(reply.meta["cached_tokens"] for reply in replies) > 30


def test_all_off(lopsided: Path, judges: Callable[[Path], Oracle]) -> None:
    """Red if a kernel or a captured graph stores or reads other rows than the oracle rounds. Rows
    of decode steps come from SGLang's own prologue here, and the pool packs them."""
    replies, _ = answers(lopsided, {"LONGCAT_SGLANG_OPS": "all"}, **OFF)
    check(replies, judges(lopsided))
    assert not any(reply.meta["cached_tokens"] for reply in replies)


def test_chunks_of_a_prefix(lopsided: Path, judges: Callable[[Path], Oracle]) -> None:
    """Red if a cached prefix is widened wrongly, in one piece (a request alone) or in several; if a
    mixed batch stores or reads other rows; or if a prefill absorbs, which the backend refuses."""
    replies, log = answers(lopsided, SMALL_CHUNKS, **ON)
    check(replies, judges(lopsided))
    assert_cached(replies)
    assert re.search(r"Prefill batch,.*#running-req: [1-9]", log), "no prefill while others decoded"


def test_block_fp8_weights_and_pages(tmp_path: Path, judges: Callable[[Path], Oracle]) -> None:
    """Red if the prologue that quantises the query stores rows otherwise, or a page's rows lie
    elsewhere."""
    path = uneven(write_fp8(tmp_path / "fp8"), tmp_path / "uneven")
    replies, _ = answers(path, {}, page_size=16)
    check(replies, judges(path), BLOCK_FP8)
    assert_cached(replies)


def test_drafts(tiny: Path, tmp_path: Path, judges: Callable[[Path], Oracle]) -> None:
    """Red if the draft's steps read other keys than its own, in graphs of draft, verify and extend:
    then it accepts much less than the oracle's MTP layer."""
    path = predictable(tiny, tmp_path / "predictable")
    texts = [text(length, seed=length) for length in (1, 2, 3, 5, 11, 17, 30, 40)]
    with engine(path, **FLAGS, **nextn(3)) as llm:
        alone = [ask(llm, [prompt], max_new_tokens=24)[0] for prompt in texts[:3]]
        together = ask(llm, texts, max_new_tokens=24)
        assert llm.log.count(f"FP8 rows of {ROW} bytes: KV Cache is allocated") == 2
    assert_right_tokens([*alone, *together], judges(path), GPU.tie)
    assert_accepts(together, path)


@pytest.mark.multi_gpu
@pytest.mark.parametrize("flags", [{}, {"attn_dp_size": 2}], ids=["tp2", "tp2-dp2"])
def test_two_gpus(lopsided: Path, judges: Callable[[Path], Oracle], flags: dict[str, Any]) -> None:
    """Red if a rank's share of the heads reads other rows, or a rank without requests stores
    some."""
    replies, _ = answers(lopsided, {}, tp_size=2, **flags)
    check(replies, judges(lopsided))
