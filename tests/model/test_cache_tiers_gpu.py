"""Prefixes that were evicted to host memory and come back, on a GPU (SGLang's CPU engine has no
host tier)."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_longcat.testing.engine_flags import nextn
from tests.harness import engine
from tests.model.drafting import predictable
from tests.model.scoring import Oracle, ask, text
from tests.model.test_modes_gpu import GPU, assert_right_tokens
from tests.model.test_speculative_gpu import NEW, STEPS, assert_accepts

POOL = 2048  # tokens on the GPU: two prompts of 700 do not stay there beside two others
LENGTH = 700


@pytest.mark.gpu
@pytest.mark.parametrize("tables", ["device", "host"])
@pytest.mark.parametrize("drafts", [True, False], ids=["drafts", "no-drafts"])
def test_a_prefix_comes_back_from_the_host(
    tiny: Path, tmp_path: Path, tables: str, drafts: bool
) -> None:
    """Red if reloaded rows are another prompt's, if the tokens before the first new one are not
    seeded, or if the draft's own rows do not come back with the target's (hardly a draft would be
    accepted)."""
    path = predictable(tiny, tmp_path / "predictable")
    first, second, *others = [text(LENGTH, seed=seed) for seed in range(6)]
    flags = {
        **GPU.flags,
        "max_total_tokens": POOL,
        "enable_hierarchical_cache": True,
        "hicache_ratio": 8.0,
        **(nextn(STEPS) if drafts else {}),
        "env": {"LONGCAT_NGRAM_TABLES": tables},
    }
    with engine(path, **flags) as llm:
        for prompt in (first, second, *others):
            ask(llm, [prompt], max_new_tokens=NEW)
        again = [
            ask(llm, [[*prompt, 5, 6, 7]], max_new_tokens=NEW)[0] for prompt in (first, second)
        ]
    for answer in again:
        assert answer.meta["cached_tokens"] >= LENGTH - 64, answer.meta
        assert answer.meta["cached_tokens_details"]["host"] > 0, answer.meta
    assert_right_tokens(again, Oracle(path), GPU.tie)
    if drafts:
        assert_accepts(again, path)
