"""`--kv-cache-dtype fp8_e4m3` on a Hopper GPU, with CUDA graphs, against the rounding oracle.

A prefill without a cached prefix attends to its own tokens before they are rounded, and the oracle
rounds all of them. So logprobs agree less closely than on the CPU: rounding moves them by 0.17 nats
on average (`test_fp8_kv_cache`), bf16 by 0.04. Scales of other quarters move them by more than 1.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from longcat_kernels import kv_rows
from sglang_longcat.testing.engine_flags import nextn
from tests.harness import engine
from tests.model.drafting import predictable
from tests.model.scoring import Answer, Oracle, ask, text
from tests.model.test_fp8 import write_fp8
from tests.model.test_fp8_kv_cache import ROW, uneven
from tests.model.test_modes_gpu import GPU, NEW, OFF, ON, assert_right_tokens, prompts
from tests.model.test_speculative_gpu import assert_accepts

pytestmark = pytest.mark.gpu
MEAN_NATS = 0.3
FLAGS = {**GPU.flags, "attention_backend": "fa3", "kv_cache_dtype": "fp8_e4m3"}
SWITCH = {"LONGCAT_FP8_KV_CACHE": "1"}
# For up to eight requests. Prefixes come in several chunks, whose shares of a softmax are merged.
SMALL_CHUNKS = {"SGLANG_MAX_KV_CHUNK_CAPACITY": "64"}


def answers(path: Path, env: dict[str, str] | None = None, **flags: Any) -> list[Answer]:
    """Twice: the second time most of a prompt may come from the radix cache."""
    with engine(path, **FLAGS, **flags, env={**SWITCH, **(env or {})}) as llm:
        first = ask(llm, prompts(), logprobs_from=0, max_new_tokens=NEW)
        again = ask(llm, prompts(), max_new_tokens=NEW)
        assert f"FP8 rows of {ROW} bytes: KV Cache is allocated" in llm.log
    return [*first, *again]


def check(replies: list[Answer], path: Path) -> None:
    oracle = Oracle(path, cache=kv_rows.rounded)
    assert mean(gap for reply in replies for gap in oracle.gaps(reply)) < MEAN_NATS
    assert_right_tokens(replies, oracle, GPU.tie)


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (OFF, {}),
        ({}, {}),
        (ON, {}),
        ({**ON, "max_running_requests": 8}, SMALL_CHUNKS),
        ({"page_size": 16}, {}),
    ],
    ids=["all off", "radix", "chunks", "chunks of a prefix", "pages"],
)
def test_scheduling(tiny: Path, tmp_path: Path, flags: dict[str, Any], env: dict[str, str]) -> None:
    """Red if a kernel or a captured graph stores or reads other rows than the oracle rounds, a
    cached prefix is widened wrongly, or a prefill absorbs (which the backend refuses)."""
    path = uneven(tiny, tmp_path / "uneven")
    replies = answers(path, env, **flags)
    check(replies, path)
    if flags is not OFF:
        assert max(reply.meta["cached_tokens"] for reply in replies) > 30


def test_block_fp8_weights(tmp_path: Path) -> None:
    """Red if the prologue that quantises the query stores rows otherwise."""
    path = uneven(write_fp8(tmp_path / "fp8"), tmp_path / "uneven")
    check(answers(path, **ON), path)


def test_kernels_of_sglang_store_the_same_rows(tiny: Path, tmp_path: Path) -> None:
    """Red if SGLang's own prologue, whose rows the pool packs, leads to other rows."""
    path = uneven(tiny, tmp_path / "uneven")
    check(answers(path, {"LONGCAT_SGLANG_OPS": "all"}), path)


@pytest.mark.parametrize("tables", ["device", "host"])
def test_drafts(tiny: Path, tmp_path: Path, tables: str) -> None:
    """Red if the draft's steps read other keys than its own, in graphs of draft, verify and extend:
    then it accepts much less than the oracle's MTP layer."""
    path = predictable(tiny, tmp_path / "predictable")
    texts = [text(length, seed=length) for length in (1, 2, 3, 5, 11, 17, 30, 40)]
    env = {**SWITCH, "LONGCAT_NGRAM_TABLES": tables}
    with engine(path, **FLAGS, **nextn(3), env=env) as llm:
        alone = [ask(llm, [prompt], max_new_tokens=24)[0] for prompt in texts[:3]]
        together = ask(llm, texts, max_new_tokens=24)
        assert llm.log.count(f"FP8 rows of {ROW} bytes: KV Cache is allocated") == 2
    assert_right_tokens([*alone, *together], Oracle(path, cache=kv_rows.rounded), GPU.tie)
    assert_accepts(together, path)


@pytest.mark.multi_gpu
@pytest.mark.parametrize("flags", [{}, {"attn_dp_size": 2}], ids=["tp2", "tp2-dp2"])
def test_two_gpus(tiny: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    path = uneven(tiny, tmp_path / "uneven")
    check(answers(path, tp_size=2, **flags), path)
