"""A large piece of host memory that GPU kernels read in place.

The pages are anonymous or those of a memfd, and huge where Linux gives huge ones. All cores touch
them at once, then CUDA registers them. Without a GPU it is plain memory. cudaHostAlloc would touch
4 KiB pages from one thread (58.5 GiB: 40 s on an H100 machine), and torch's pin_memory would also
round the size up to a power of two. Owns the memory and the check that there is enough of it.
`tables.py` owns the content, `sharing.py` who shares it.
"""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from sglang_longcat.planning.placement import HOST_MARGIN
from sglang_longcat.planning.sizing import GIB

logger = logging.getLogger(__name__)

_MADV_HUGEPAGE, _MADV_POPULATE_WRITE = 14, 23  # linux/mman.h
_PIECE = 1 << 30  # touched and registered by one thread at a time
_MAP_NORESERVE = 0x4000
_REGISTER_MAPPED = 0x01 | 0x02  # cudaHostRegisterPortable | cudaHostRegisterMapped
_UNLIMITED = 1 << 62


class NotEnoughHostMemory(RuntimeError):
    """The host cannot hold, or CUDA not pin, what was asked for."""


class HostMemory:
    """`size` bytes, zero; `pin`: readable by GPU kernels. Freed with `close` or with the object.

    file: a descriptor to map instead of anonymous memory; `fill`: extend that file and touch it.
    """

    def __init__(self, size: int, *, pin: bool, file: int | None = None, fill: bool = True) -> None:
        begin = time.monotonic()
        self.size = size
        self._map = _map(max(size, 1), file=file, extend=fill)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)[:size]
        pieces = [(start, min(_PIECE, size - start)) for start in range(0, size, _PIECE)]
        self._registered: list[int] = []
        self.close = weakref.finalize(self, _unregister, self._registered)
        if pin:
            if fill:
                self._touch(pieces)
            touched = time.monotonic()
            self._register(pieces)
            logger.info(
                "pinned %.1f GiB of host memory: %.1f s to touch, %.1f s to register",
                size / GIB,
                touched - begin,
                time.monotonic() - touched,
            )

    def _touch(self, pieces: list[tuple[int, int]]) -> None:
        base, libc = self.bytes.data_ptr(), ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        libc.madvise(base, self.size, _MADV_HUGEPAGE)  # only a hint: 4 KiB pages work too

        def touch(piece: tuple[int, int]) -> None:
            start, length = piece
            if libc.madvise(base + start, length, _MADV_POPULATE_WRITE):  # Linux before 5.14
                ctypes.memset(base + start, 0, length)

        with ThreadPoolExecutor(min(16, cores())) as pool:
            list(pool.map(touch, pieces))

    def _register(self, pieces: list[tuple[int, int]]) -> None:
        cudart, base = torch.cuda.cudart(), self.bytes.data_ptr()
        for start, length in pieces:
            error = int(cudart.cudaHostRegister(base + start, length, _REGISTER_MAPPED))
            if error:
                self.close()
                raise NotEnoughHostMemory(
                    f"CUDA could not pin host memory for the N-gram tables (cudaHostRegister error "
                    f"{error}, after {start / GIB:.1f} of {self.size / GIB:.1f} GiB). Raise the "
                    "limits of locked memory (ulimit -l; docker run --ulimit memlock=-1) and of "
                    "the container's memory, or set LONGCAT_NGRAM_TABLES=device."
                )
            self._registered.append(base + start)


def _map(size: int, *, file: int | None, extend: bool) -> mmap.mmap:
    if file is None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        return mmap.mmap(-1, size, flags=flags)
    if extend:
        os.ftruncate(file, size)
    return mmap.mmap(file, size, flags=mmap.MAP_SHARED)


def _unregister(addresses: list[int]) -> None:
    while addresses:
        torch.cuda.cudart().cudaHostUnregister(addresses.pop())


def cores() -> int:
    return len(os.sched_getaffinity(0))


def available_bytes(root: Path = Path("/")) -> int:
    """What this process may still allocate: the machine's free memory, within the limits of its
    control groups."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    free_kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return min(int(free_kib) * 1024, _cgroup_room(root))


def _cgroup_room(root: Path) -> int:
    """The least of memory.max - (memory.current - page cache that can be dropped) over this control
    group and those above it, in cgroup version 2 and 1. _UNLIMITED without a limit."""
    group = (root / "proc/self/cgroup").read_text().strip().splitlines()
    unified = next((line[3:] for line in group if line.startswith("0::")), "/")
    rooms = [_UNLIMITED]
    for name in [unified, *map(str, Path(unified).parents)]:
        rooms.append(_room(root / "sys/fs/cgroup" / name.lstrip("/"), "memory.max", "current"))
    legacy = next((line.split(":")[2] for line in group if ":memory:" in line), "/")
    for name in {legacy, "/"}:
        directory = root / "sys/fs/cgroup/memory" / name.lstrip("/")
        rooms.append(_room(directory, "memory.limit_in_bytes", "usage_in_bytes"))
    return min(rooms)


def _room(directory: Path, limit: str, used: str) -> int:
    try:
        most = (directory / limit).read_text().strip()
        current = int((directory / f"memory.{used}").read_text())
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except OSError:
        return _UNLIMITED
    if most == "max":
        return _UNLIMITED
    cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return int(most) - current + cache


def require_room(needed: int, available: int) -> None:
    """NotEnoughHostMemory unless `available` is HOST_MARGIN times the `needed` bytes of a node."""
    if needed * HOST_MARGIN > available:
        raise NotEnoughHostMemory(
            f"the N-gram tables need {needed / GIB:.1f} GiB of host memory on this node, and "
            f"{math.floor(available / GIB * 10) / 10:.1f} GiB are available to this process. Give "
            "the machine or container more memory, store fewer bytes with "
            "LONGCAT_NGRAM_TABLE_DTYPE=fp8 or int4, or keep the tables on the GPU: "
            "LONGCAT_NGRAM_TABLES=device."
        )
