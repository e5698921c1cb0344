"""Tables in either placement, read in place by the GPU: exact, also beyond 2^31 elements."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from longcat_kernels import lite, ngram
from longcat_kernels.ngram import HashParams, Window, workloads
from longcat_kernels.row_table import RowTable
from sglang_longcat.ngram.host_memory import HostMemory, available_bytes

pytestmark = pytest.mark.gpu
COLUMNS = 256
ROWS = tuple(
    700_001 + 2 * i for i in range(lite.NGRAM_TABLES)
)  # 8.4 M rows: 2^31 elements and 0.2 M more


@pytest.fixture(scope="module")
def memory() -> HostMemory:
    assert sum(ROWS) * COLUMNS > 2**31
    return numbered(HostMemory(sum(ROWS) * COLUMNS * 2, pin=True))


def numbered(memory: HostMemory) -> HostMemory:
    """Row r holds r in its first four bytes and -r in its last."""
    words = memory.bytes.view(torch.int32).view(-1, COLUMNS // 2)
    words[:, 0] = torch.arange(len(words))
    words[:, -1] = -torch.arange(len(words))
    return memory


@pytest.fixture(scope="module")
def params() -> HashParams:
    return workloads.lite_params("cuda", rows=ROWS)


def rows_of(memory: HostMemory) -> RowTable:
    storage = memory.bytes.view(torch.bfloat16).view(-1, COLUMNS)
    return RowTable(storage, COLUMNS, torch.bfloat16)


@pytest.fixture(params=["host", "device"])
def rows(memory: HostMemory, request: pytest.FixtureRequest) -> RowTable:
    """The same rows where either placement has them."""
    pinned = rows_of(memory)
    if request.param == "host":
        return pinned
    # Through a plain copy: pinned gigabyte by gigabyte, its memory is not one region to CUDA.
    return dataclasses.replace(pinned, storage=pinned.storage.clone().cuda())


def check(got: torch.Tensor, ids: torch.Tensor) -> None:
    words = got.view(torch.int32).view(*ids.shape, COLUMNS // 2)
    assert torch.equal(words[..., 0].long(), ids)
    assert torch.equal(words[..., -1].long(), -ids)


@pytest.mark.parametrize(
    "lengths", [[1] * 300, [1, 2, 3, 700, 16, 8000]], ids=["decode", "prefill"]
)
def test_rows_are_the_ones_named(rows: RowTable, params: HashParams, lengths: list[int]) -> None:
    inputs = workloads.make_inputs(lengths, seed=1, device="cuda")
    if max(lengths) == 1:
        ids = ngram.window_ids(inputs.window, inputs.ring.clone(), params)
        got = ngram.window_rows(inputs.window, inputs.ring, params, rows)
    else:
        ids = ngram.extend_ids(inputs.prefill, inputs.ring.clone(), params)
        got = ngram.extend_rows(inputs.prefill, inputs.ring, params, rows)
    check(got, ids)


@pytest.mark.parametrize("end", ["first", "last"])
def test_the_ends_of_each_table(rows: RowTable, params: HashParams, end: str) -> None:
    """Token 0 at the start of a text hashes to row 0; with the last rows as offsets, to those."""
    firsts = torch.tensor([sum(ROWS[:i]) for i in range(lite.NGRAM_TABLES)], device="cuda")
    wanted = firsts if end == "first" else firsts + torch.tensor(ROWS, device="cuda") - 1
    ends = dataclasses.replace(params, offsets=wanted)
    zero = torch.zeros(1, dtype=torch.int64, device="cuda")
    ring = torch.zeros((2, lite.RING), dtype=torch.int32, device="cuda")
    window = Window(zero, positions=zero, slots=zero + 1)
    check(ngram.window_rows(window, ring, ends, rows), wanted[None])


def test_a_captured_step_follows_its_inputs(rows: RowTable, params: HashParams) -> None:
    static = workloads.make_inputs([1] * 64, seed=0, device="cuda")
    ngram.window_rows(static.window, static.ring, params, rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ngram.window_rows(static.window, static.ring, params, rows)
    for seed in range(1, 4):
        fresh = workloads.make_inputs([1] * 64, seed=seed, device="cuda")
        for name in ("tokens", "positions", "slots", "ring"):
            getattr(static, name).copy_(getattr(fresh, name))
        graph.replay()
        check(got, ngram.window_ids(fresh.window, fresh.ring, params))


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


def started(job: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
    """A fresh process that runs `job(connection, *args)`: a fork could not use CUDA."""
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    process = spawn.Process(target=job, args=(far, *args))
    process.start()
    far.close()
    return process, near


SHARED = tuple(1_001 + 2 * i for i in range(lite.NGRAM_TABLES))


def gather(answer: Connection, path: str) -> None:
    """What this process's GPU kernels read of another's memory."""
    file = os.open(path, os.O_RDWR)
    memory = HostMemory(sum(SHARED) * COLUMNS * 2, pin=True, file=file, fill=False)
    inputs = workloads.make_inputs([1] * 300, seed=1, device="cuda")
    params = workloads.lite_params("cuda", rows=SHARED)
    ids = ngram.window_ids(inputs.window, inputs.ring.clone(), params)
    got = ngram.window_rows(inputs.window, inputs.ring, params, rows_of(memory))
    answer.send((ids.cpu().numpy(), got.cpu().view(torch.int32).numpy()))


def test_two_processes_read_one_pinned_copy() -> None:
    """Replicas of data-parallel attention: both register the same pages, one has written them."""
    file = os.memfd_create("test")
    mine = numbered(HostMemory(sum(SHARED) * COLUMNS * 2, pin=True, file=file))
    process, answer = started(gather, f"/proc/{os.getpid()}/fd/{file}")
    ids, got = answer.recv()
    process.join()
    os.close(file)
    check(torch.from_numpy(got), torch.from_numpy(ids))
    assert mine.bytes.is_pinned()


def load_half(answer: Connection, size: int) -> None:
    memory = HostMemory(size, pin=True)
    memory.bytes[: size // 2].fill_(7)
    answer.send("half-way")
    answer.recv()


def test_a_process_killed_while_loading_leaves_no_pinned_memory() -> None:
    size, before = 8 << 30, available_bytes()
    process, answer = started(load_half, size)
    assert answer.recv() == "half-way"
    assert available_bytes() < before - size // 2
    process.kill()
    process.join()
    deadline = time.monotonic() + 60
    while available_bytes() < before - size // 8:
        assert time.monotonic() < deadline, "the memory of the killed process is still in use"
        time.sleep(0.5)
