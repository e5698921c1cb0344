"""Two servers on one node whose replicas each share one copy of the host tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sglang_longcat.config import LongcatConfig
from sglang_longcat.ngram.sharing import NAME
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import Engine, engine, free_port
from tests.harness.mappings import holders, inodes
from tests.model.scoring import Oracle, ask, assert_same, text

PROMPTS = [text(length, seed=1300 + length) for length in (2, 9, 33, 120)]
FP32 = 4


@contextmanager
def at_once(*paths: Path) -> Iterator[list[Engine]]:
    """An engine of two data-parallel replicas for each checkpoint, all started together."""

    def start(stack: ExitStack, path: Path) -> Engine:
        flags = {"tp_size": 2, "attn_dp_size": 2, "port": free_port()}
        return stack.enter_context(engine(path, **flags))

    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        stacks = [stack.enter_context(ExitStack()) for _ in paths]
        yield list(pool.map(start, stacks, paths))


def copies(llm: Engine) -> list[int]:
    """The memfds that its owners of tables map, by what they log."""
    owners = re.findall(r"read by 2 ranks from one copy, /proc/(\d+)/fd", llm.log)
    return [inode for pid in owners for inode in inodes(int(pid), NAME)]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("sharing") / "other", TinyOptions(seed=1))


def test_two_servers_of_two_replicas(tiny: Path, other: Path, oracle: Oracle) -> None:
    """Red if a replica has tables of its own, if its columns are another's, if a server meets the
    tables of the other one, or if a weight update reaches one of the replicas only."""
    ngram = LongcatConfig.from_dir(tiny).ngram
    assert ngram is not None
    size, others = sum(ngram.rows) * ngram.width * FP32, Oracle(other)
    with at_once(tiny, other) as (first, second):
        tables = [copies(first), copies(second)]
        assert [len(memfds) for memfds in tables] == [1, 1]
        assert tables[0] != tables[1]
        for [inode] in tables:
            held = holders(inode)
            assert len(held) == 2
            assert sum(held.values()) == pytest.approx(size, rel=0.02)
        for llm, judge in ((first, oracle), (second, others), (first, oracle)):
            assert_same(ask(llm, PROMPTS, logprobs_from=0), judge)
        done, message, _ = first.call("update_weights_from_disk", str(other))
        assert done, message
        for llm in (first, second):
            assert_same(ask(llm, PROMPTS, logprobs_from=0), others)
    assert not any(holders(inode) for [inode] in tables)
