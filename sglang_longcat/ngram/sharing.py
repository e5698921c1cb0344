"""One copy of the host tables for all ranks of a machine that need the same columns.

Tensor-parallel ranks need different columns; replicas of data-parallel attention need the same
ones. The first rank of those that share makes a memfd. The others open it as /proc/<pid>/fd/<n> and
map the same pages. A memfd has no name, no size limit as /dev/shm has, and it disappears with its
last process, however that process ends. Owns who shares with whom, and the agreement between ranks;
`host_memory.py` owns the mapping.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sglang_longcat.ngram.host_memory import HostMemory, NotEnoughHostMemory

logger = logging.getLogger(__name__)
NAME = "longcat-ngram-tables"  # in /proc/<pid>/maps
Exchange = Callable[[Any], Sequence[Any]]  # takes a rank's value, returns those of all, by rank

_REMEDY = (
    "The ranks of one machine that hold the same columns of the N-gram tables share their host "
    "memory: they must run as one user and see each other in /proc (one container, no hidepid). "
    "Change that, or set LONGCAT_NGRAM_TABLES=device."
)


class SharingError(RuntimeError):
    """A rank could not make, or map, the memory that it shares with others."""


def machine() -> str:
    """The same for processes that can see each other in /proc: containers of a host cannot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


@dataclass(frozen=True)
class Sharers:
    """The ranks of this machine with this rank's columns. `exchange` is a collective of all."""

    exchange: Exchange
    rank: int
    owner: int  # the rank that allocates and fills the memory, the first of them
    count: int
    copies: int  # sets of columns held on one machine; the most of any machine
    any_shared: bool  # by some ranks, on some machine

    @classmethod
    def find(cls, exchange: Exchange, rank: int, columns: slice, *, where: str = "") -> Sharers:
        """Collective. where: the machine's name; empty: this machine's."""
        every = list(exchange((where or machine(), columns.start)))
        mine, memories = every[rank], set(every)
        machines = [name for name, _ in memories]
        return cls(
            exchange=exchange,
            rank=rank,
            owner=every.index(mine),
            count=every.count(mine),
            copies=max(map(machines.count, machines)),
            any_shared=len(memories) < len(every),
        )

    @property
    def owns(self) -> bool:
        return self.rank == self.owner

    def allocate(self, size: int, *, pin: bool) -> HostMemory:
        """HostMemory of `size` bytes, which the owner allocates and the others map. Collective. If
        any rank fails, raises SharingError on every rank and frees what was allocated."""
        if not self.any_shared:
            return HostMemory(size, pin=pin)
        with ExitStack() as files:

            def memory(descriptor: int) -> HostMemory:
                files.callback(os.close, descriptor)
                return HostMemory(size, pin=pin, file=descriptor, fill=self.owns)

            # The owner touches all of it before the others, which pin what they find.
            made, path = self._turn(self.owns, lambda: os.memfd_create(NAME), memory)
            mapped, _ = self._turn(not self.owns, lambda: os.open(path, os.O_RDWR), memory)
        if self.owns:
            logger.info("N-gram tables: read by %d ranks from one copy, %s", self.count, path)
        return cast(HostMemory, made or mapped)

    def _turn(
        self, mine: bool, open_file: Callable[[], int], make: Callable[[int], HostMemory]
    ) -> tuple[HostMemory | None, str]:
        """(what `make` returned if it was this rank's turn, else None; the owner's file)."""
        memory, path, failed = None, "", ""
        try:
            if mine:
                descriptor = open_file()
                path = f"/proc/{os.getpid()}/fd/{descriptor}"
                memory = make(descriptor)
        except OSError as error:
            failed = f"rank {self.rank}: {error}. {_REMEDY}"
        except NotEnoughHostMemory as error:
            failed = f"rank {self.rank}: {error}"
        offers = self.exchange((path, failed))
        if failures := [said for _, said in offers if said]:
            if memory is not None:
                memory.close()
            raise SharingError("; ".join(failures))
        return memory, offers[self.owner][0]

    def wait(self) -> None:
        """Collective: return when the owners have written everything that they load."""
        if self.any_shared:
            self.exchange(None)
