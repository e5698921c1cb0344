"""The limits of SGLang's NGRAM proposer, on its own trie (C++, built at the first use)."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random

import pytest
from sglang.srt.speculative.cpp_ngram.ngram_corpus import NgramCorpus

from sglang_longcat.speculation.window_limits import (
    MAX_BRANCHES,
    MIN_TRIE_DEPTH,
    min_trie_capacity,
)

REQUESTS = 24


def soak(depth: int, capacity: int, steps: int = 200) -> None:
    """What NGRAMWorker does with the trie: batches of requests that come, grow and go."""
    corpus = NgramCorpus(
        capacity=capacity,
        max_trie_depth=depth,
        min_bfs_breadth=MAX_BRANCHES,
        max_bfs_breadth=MAX_BRANCHES,
        draft_token_num=4,
    )
    draw = random.Random(depth)
    texts = [_tokens(draw, draw.randrange(1, 60)) for _ in range(REQUESTS)]
    for _ in range(steps):
        batch = draw.sample(range(REQUESTS), draw.randrange(1, REQUESTS))
        names, tails = [str(i) for i in batch], [texts[i][-depth:] for i in batch]
        corpus.synchronize()
        corpus.batch_get(names, tails, [len(texts[i]) for i in batch])
        for i in batch:
            texts[i] += _tokens(draw, draw.randrange(1, 5))
        corpus.batch_put([texts[i][-depth:] for i in batch])
        if draw.random() < 0.05:
            corpus.erase_match_state(names[:1])
            texts[batch[0]] = _tokens(draw, 3)
        if draw.random() < 0.01:
            corpus.synchronize()
            corpus.reset()
    corpus.synchronize()


def _soak_quietly(depth: int, capacity: int) -> None:
    """Without the traces of the abort, which look like a failure of the tests."""
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    soak(depth, capacity)


def _tokens(draw: random.Random, length: int) -> list[int]:
    """Of few words, so that paths share nodes."""
    return [draw.randrange(4) for _ in range(length)]


@pytest.mark.parametrize("depth", [MIN_TRIE_DEPTH, 3, 18])
def test_the_smallest_capacity_holds(depth: int) -> None:
    """Red, with an abort of the process, if SGLang's trie comes to need more nodes."""
    soak(depth, min_trie_capacity(depth))


def test_one_node_less_ends_the_process() -> None:
    """Red if SGLang's trie survives it: then the refusal can go. In a fork, which it ends."""
    depth = 18
    child = multiprocessing.get_context("fork").Process(
        target=_soak_quietly, args=(depth, min_trie_capacity(depth) - 1)
    )
    child.start()
    child.join(timeout=60)
    assert (child.exitcode or 0) < 0, "not ended by a signal"


def test_a_shallower_trie_is_refused_by_sglang() -> None:
    """Red if MIN_TRIE_DEPTH is not SGLang's own limit any more."""
    with pytest.raises(RuntimeError, match="max_trie_depth must be greater than 1"):
        NgramCorpus(max_trie_depth=MIN_TRIE_DEPTH - 1, capacity=100)
