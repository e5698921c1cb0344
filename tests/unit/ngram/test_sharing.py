"""Ranks with the same columns map the same memory; the ranks are forked processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from sglang_longcat.ngram.sharing import NAME, Exchange, Sharers, SharingError
from tests.harness.mappings import holders, inodes

FORK = multiprocessing.get_context("fork")
SIZE = 64 << 20
HALVES = [slice(0, 32), slice(32, 64)]


def everyone(columns: list[slice], machines: str) -> list[Sharers]:
    """What each rank finds; `machines`: a letter for each rank."""
    every = [(machine, part.start) for machine, part in zip(machines, columns, strict=True)]
    return [
        Sharers.find(lambda _: every, rank, part, where=every[rank][0])
        for rank, part in enumerate(columns)
    ]


def test_tensor_parallel_ranks_share_nothing() -> None:
    ranks = everyone(HALVES, "aa")
    assert [(rank.owns, rank.count, rank.copies, rank.any_shared) for rank in ranks] == [
        (True, 1, 2, False)
    ] * 2


def test_replicas_share_with_those_of_the_same_columns() -> None:
    """Two replicas of two ranks: two memories, and not four."""
    ranks = everyone(HALVES * 2, "aaaa")
    assert [rank.owner for rank in ranks] == [0, 1, 0, 1]
    assert {(rank.count, rank.copies, rank.any_shared) for rank in ranks} == {(2, 2, True)}


def test_another_machine_has_its_own() -> None:
    ranks = everyone([slice(0, 64)] * 3, "aab")
    assert [rank.owner for rank in ranks] == [0, 0, 2]
    assert [rank.count for rank in ranks] == [2, 2, 1]
    assert {(rank.copies, rank.any_shared) for rank in ranks} == {(1, True)}


class Ranks:
    """`job(exchange, rank, report)` in forked processes; a rank that dies ends all exchanges."""

    def __init__(self, job: Callable[[Exchange, int, Connection], None], count: int = 2) -> None:
        self.processes, self.reports, hub = [], [], []
        for rank in range(count):
            (near, far), (report, to_report) = FORK.Pipe(), FORK.Pipe()
            process = FORK.Process(target=self._run, args=(job, rank, far, to_report))
            process.start()
            far.close()  # before the next fork, which would keep it open when this rank is gone
            to_report.close()
            self.processes.append(process)
            self.reports.append(report)
            hub.append(near)
        threading.Thread(target=self._serve, args=(hub,), daemon=True).start()

    @staticmethod
    def _run(job: Callable[..., None], rank: int, hub: Connection, report: Connection) -> None:
        def exchange(value: Any) -> Any:
            hub.send(value)
            if (values := hub.recv()) is None:
                raise EOFError
            return values

        torch.set_num_threads(1)
        job(exchange, rank, report)

    @staticmethod
    def _serve(hub: list[Connection]) -> None:
        """Ends with a None to all once one of them is gone."""
        values: list[Any] | None = []
        while values is not None:
            try:
                values = [peer.recv() for peer in hub]
            except (EOFError, OSError):
                values = None
            for peer in hub:
                with contextlib.suppress(OSError):
                    peer.send(values)

    def hear(self, rank: int) -> Any:
        assert self.reports[rank].poll(60), f"rank {rank} said nothing"
        return self.reports[rank].recv()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@contextlib.contextmanager
def running(job: Callable[[Exchange, int, Connection], None]) -> Iterator[Ranks]:
    ranks = Ranks(job)
    try:
        yield ranks
    finally:
        ranks.end()


def fill(exchange: Exchange, rank: int, report: Connection) -> None:
    """The owner writes a pattern; each reports the end of it, and stays."""
    sharers = Sharers.find(exchange, rank, slice(0, 64))
    memory = sharers.allocate(SIZE, pin=False)
    if sharers.owns:
        time.sleep(0.2)  # the other would read zeros if it did not wait
        memory.bytes.fill_(7)
    sharers.wait()
    report.send((inodes(os.getpid(), NAME), int(memory.bytes[-1]), memory.bytes.shape))
    signal.pause()


def test_two_processes_hold_one_copy() -> None:
    with running(fill) as ranks:
        said = [ranks.hear(rank) for rank in range(2)]
        [inode] = said[0][0]
        assert said == [({inode}, 7, (SIZE,))] * 2
        held = holders(inode)
        assert set(held) == {process.pid for process in ranks.processes}
        assert sum(held.values()) == pytest.approx(SIZE, rel=0.01)
    assert not holders(inode)


def write_half(exchange: Exchange, rank: int, report: Connection) -> None:
    sharers = Sharers.find(exchange, rank, slice(0, 64))
    memory = sharers.allocate(SIZE, pin=False)
    if sharers.owns:
        memory.bytes[: SIZE // 2].fill_(7)
        report.send(inodes(os.getpid(), NAME))
        signal.pause()
    try:
        sharers.wait()
    except EOFError:
        report.send("the owner is gone")
        signal.pause()


def test_a_killed_writer_leaves_nothing_behind() -> None:
    """Not a name, and no memory once the others are gone too; they hear of its end."""
    with running(write_half) as ranks:
        [inode] = ranks.hear(0)
        ranks.processes[0].kill()
        ranks.processes[0].join()
        assert ranks.hear(1) == "the owner is gone"
        assert set(holders(inode)) == {ranks.processes[1].pid}
    assert not holders(inode)


def refused(exchange: Exchange, rank: int, report: Connection) -> None:
    """Rank 1 may not look into the files of rank 0."""

    def no(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    if rank == 1:
        os.open = no  # type: ignore[assignment]
    with pytest.raises(SharingError) as error:
        Sharers.find(exchange, rank, slice(0, 64)).allocate(SIZE, pin=False)
    said = str(error.value)
    del error
    report.send((said, inodes(os.getpid(), NAME)))


def test_a_mapping_that_fails_is_an_error_of_every_rank() -> None:
    """It says who, what and the remedy, and nothing stays mapped."""
    with running(refused) as ranks:
        for rank in range(2):
            said, mapped = ranks.hear(rank)
            assert "rank 1: [Errno 13] Permission denied: '/proc/" in said
            assert "one container, no hidepid" in said
            assert "LONGCAT_NGRAM_TABLES=device" in said
            assert not mapped


def unpinnable(exchange: Exchange, rank: int, report: Connection) -> None:
    class Runtime:
        cudaHostRegister = staticmethod(lambda *_: 2)

    torch.cuda.cudart = Runtime
    with pytest.raises(SharingError) as error:
        Sharers.find(exchange, rank, slice(0, 64)).allocate(SIZE, pin=True)
    report.send(str(error.value))


def test_an_owner_that_cannot_pin_stops_all() -> None:
    with running(unpinnable) as ranks:
        for rank in range(2):
            assert "rank 0: CUDA could not pin host memory" in ranks.hear(rank)
