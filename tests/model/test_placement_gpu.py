"""Tables in pinned host memory, read in place by the GPU: exact, also beyond 2^31 elements."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from longcat_kernels import ngram_ids, ngram_rows
from longcat_kernels.ngram_ids import HashTable
from longcat_kernels.ngram_ids import workloads as lite
from longcat_kernels.ngram_rows import RowTable
from sglang_longcat.ngram.host_memory import HostMemory

pytestmark = pytest.mark.gpu
COLUMNS = 256
ROWS = tuple(
    700_001 + 2 * i for i in range(lite.TABLES)
)  # 8.4 M rows: 2^31 elements and 0.2 M more


@pytest.fixture(scope="module")
def memory() -> HostMemory:
    """Row r holds r in its first four bytes and -r in its last."""
    assert sum(ROWS) * COLUMNS > 2**31
    memory = HostMemory(sum(ROWS) * COLUMNS * 2, pin=True)
    words = memory.bytes.view(torch.int32).view(sum(ROWS), COLUMNS // 2)
    words[:, 0] = torch.arange(sum(ROWS))
    words[:, -1] = -torch.arange(sum(ROWS))
    return memory


@pytest.fixture(scope="module")
def table() -> HashTable:
    return ngram_ids.make_hash_table(
        vocab_size=lite.VOCAB, rows=ROWS, orders=lite.ORDERS, eos=lite.EOS, device="cuda"
    )


def rows_of(memory: HostMemory) -> RowTable:
    storage = memory.bytes.view(torch.bfloat16).view(sum(ROWS), COLUMNS)
    return RowTable(storage, COLUMNS, torch.bfloat16)


def check(found: torch.Tensor, ids: torch.Tensor) -> None:
    words = found.view(torch.int32).view(*ids.shape, COLUMNS // 2)
    assert torch.equal(words[..., 0].long(), ids)
    assert torch.equal(words[..., -1].long(), -ids)


@pytest.mark.parametrize(
    "lengths", [[1] * 300, [1, 2, 3, 700, 16, 8000]], ids=["decode", "prefill"]
)
def test_host_rows_are_the_ones_named(
    memory: HostMemory, table: HashTable, lengths: list[int]
) -> None:
    inputs, rows = lite.make_inputs(lengths, seed=1, device="cuda"), rows_of(memory)
    args = [inputs.tokens, inputs.positions, inputs.slots]
    if max(lengths) == 1:
        ids = ngram_ids.window_ids(*args, inputs.ring.clone(), table)
        found = ngram_rows.window_rows(*args, inputs.ring, table, rows)
    else:
        args += [inputs.starts, inputs.lengths]
        ids = ngram_ids.extend_ids(*args, inputs.ring.clone(), table)
        found = ngram_rows.extend_rows(*args, inputs.ring, table, rows)
    check(found, ids)


@pytest.mark.parametrize("end", ["first", "last"])
def test_the_ends_of_each_table(memory: HostMemory, table: HashTable, end: str) -> None:
    """Token 0 at the start of a text hashes to row 0; with the last rows as offsets, to those."""
    firsts = torch.tensor([sum(ROWS[:i]) for i in range(lite.TABLES)], device="cuda")
    wanted = firsts if end == "first" else firsts + torch.tensor(ROWS, device="cuda") - 1
    ends = dataclasses.replace(table, offsets=wanted)
    zero = torch.zeros(1, dtype=torch.int64, device="cuda")
    ring = torch.zeros((2, lite.RING), dtype=torch.int32, device="cuda")
    check(ngram_rows.window_rows(zero, zero, zero + 1, ring, ends, rows_of(memory)), wanted[None])


def test_a_captured_step_reads_the_host(memory: HostMemory, table: HashTable) -> None:
    static, rows = lite.make_inputs([1] * 64, seed=0, device="cuda"), rows_of(memory)
    args = static.tokens, static.positions, static.slots
    ngram_rows.window_rows(*args, static.ring, table, rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ngram_rows.window_rows(*args, static.ring, table, rows)
    for seed in range(1, 4):
        fresh = lite.make_inputs([1] * 64, seed=seed, device="cuda")
        for name in ("tokens", "positions", "slots", "ring"):
            getattr(static, name).copy_(getattr(fresh, name))
        graph.replay()
        check(
            found,
            ngram_ids.window_ids(fresh.tokens, fresh.positions, fresh.slots, fresh.ring, table),
        )


def test_nothing_stays_pinned() -> None:
    memory = HostMemory(3 << 30, pin=True)  # three registrations
    data = memory.bytes
    assert data.is_pinned()
    memory.close()
    assert not data.is_pinned()
    dropped = HostMemory(1 << 20, pin=True)
    data = dropped.bytes
    del dropped
    assert not data.is_pinned()
