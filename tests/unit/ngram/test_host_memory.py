"""How much host memory there is, and what is said where it is too little."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from sglang_longcat.ngram import host_memory
from sglang_longcat.ngram.host_memory import (
    HostMemory,
    NotEnoughHostMemory,
    available_bytes,
    require_room,
)
from sglang_longcat.ngram.tables import NgramTables
from tests.harness.mappings import resident

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 100 GiB available, no limit on its control groups."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 9 kB\nMemAvailable: {100 * GIB // 1024} kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    for group in ("", "a", "a/b"):
        limit(tmp_path / "sys/fs/cgroup" / group, "max", 0)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limit(group: Path, most: int | str, used: int, cache: int = 0) -> None:
    write(group / "memory.max", f"{most}\n")
    write(group / "memory.current", f"{used}\n")
    write(group / "memory.stat", f"anon 5\ninactive_file {cache}\n")


def test_the_machine_is_the_limit_where_no_group_is(root: Path) -> None:
    assert available_bytes(root) == 100 * GIB


def test_the_tightest_group_on_the_way_up_is_the_limit(root: Path) -> None:
    """Page cache that can go does not count as used."""
    limit(root / "sys/fs/cgroup/a", 50 * GIB, 30 * GIB, cache=10 * GIB)
    assert available_bytes(root) == 30 * GIB
    limit(root / "sys/fs/cgroup/a/b", 20 * GIB, 1 * GIB)
    assert available_bytes(root) == 19 * GIB


def test_a_container_that_sees_only_its_own_group(root: Path) -> None:
    """Inside a cgroup namespace the group is "/", and its limit lies at the top."""
    write(root / "proc/self/cgroup", "0::/\n")
    limit(root / "sys/fs/cgroup", 64 * GIB, 4 * GIB)
    assert available_bytes(root) == 60 * GIB


def test_version_1_groups(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/docker/x\n")
    group = root / "sys/fs/cgroup/memory/docker/x"
    write(group / "memory.limit_in_bytes", str(10 * GIB))
    write(group / "memory.usage_in_bytes", str(3 * GIB))
    write(group / "memory.stat", f"total_inactive_file {GIB}\n")
    assert available_bytes(root) == 8 * GIB


def test_too_little_is_an_error_that_says_what_to_do(root: Path) -> None:
    require_room(95 * GIB, available_bytes(root))
    with pytest.raises(NotEnoughHostMemory) as error:
        require_room(int(98.5 * GIB), available_bytes(root))
    said = str(error.value)
    assert "need 98.5 GiB of host memory on this node, and 100.0 GiB are available" in said
    for way_out in ("LONGCAT_NGRAM_TABLE_DTYPE=fp8", "LONGCAT_NGRAM_TABLES=device"):
        assert way_out in said


def test_this_machine_has_some() -> None:
    assert 0 < available_bytes() < 1 << 50


def test_memory_is_zero_and_as_long_as_asked() -> None:
    memory = HostMemory(3_000_001, pin=False)
    assert memory.bytes.shape == (3_000_001,)
    assert not memory.bytes.any()
    memory.close()


class Runtime:
    """CUDA's host registrations; those after `most` fail."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.most, self.registered = most, dict[int, int]()

    def cudaHostRegister(self, address: int, length: int, _flags: int) -> int:
        if len(self.registered) == self.most:
            return 2
        self.registered[address] = length
        return 0

    def cudaHostUnregister(self, address: int) -> None:
        del self.registered[address]


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of what is registered at a time."""
    monkeypatch.setattr(host_memory, "_PIECE", 16 << 20)
    return 16 << 20


def test_a_limit_half_way_leaves_nothing_pinned(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of eight pieces could be pinned: they are given back, and so is all of the memory."""
    cuda, before = Runtime(most=3), resident()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    with pytest.raises(NotEnoughHostMemory, match=r"error 2, after 0\.0 of 0\.1 GiB.*ulimit -l"):
        HostMemory(8 * pieces, pin=True)
    gc.collect()
    assert not cuda.registered
    assert resident() < before + pieces


def test_loading_that_fails_half_way_leaves_nothing_pinned(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a checkpoint does whose third table is cut: the tables go with the model."""
    cuda, before = Runtime(), resident()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)

    def load() -> None:
        rows = (1 << 15,) * 4
        tables = NgramTables(
            rows,
            slice(0, 512),
            dtype=torch.bfloat16,
            table_dtype="bf16",
            where="host",
            device=torch.device("cuda"),
            show_progress=False,
        )
        assert sum(cuda.registered.values()) == sum(rows) * 1024 == 8 * pieces
        for index, count in enumerate((rows[0], rows[1], rows[2] // 2)):
            tables.load(index, torch.ones((count, 512), dtype=torch.bfloat16))

    with pytest.raises(RuntimeError, match="size of tensor"):
        load()
    gc.collect()
    assert not cuda.registered
    assert resident() < before + 2 * pieces
