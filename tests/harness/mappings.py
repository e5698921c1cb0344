"""Which processes map a memfd, and how much of its memory counts as theirs, from /proc.

Owns: reading smaps and statm. A process that ends while it is read maps nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) +(.*)")


def inodes(pid: int, name: str) -> set[int]:
    """The inodes of the memfds called `name` that process `pid` maps."""
    return {inode for inode, path, _ in _mappings(pid) if path.startswith(f"/memfd:{name}")}


def holders(inode: int) -> dict[int, int]:
    """For each process of this machine that maps the memfd: its resident bytes, each page divided
    by the number of processes that share it."""
    shares: dict[int, int] = {}
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        for mapped, path, share in _mappings(pid):
            if mapped == inode and path.startswith("/memfd:"):
                shares[pid] = shares.get(pid, 0) + share
    return shares


def _mappings(pid: int) -> Iterator[tuple[int, str, int]]:
    """(inode, path, Pss in bytes) of each mapping of `pid`."""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return
    inode, path = 0, ""
    for line in lines:
        if header := _HEADER.match(line):
            inode, path = int(header[1]), header[2]
        elif line.startswith("Pss:"):
            yield inode, path, int(line.split()[1]) * 1024


def resident() -> int:
    """The bytes of physical memory that this process uses."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
