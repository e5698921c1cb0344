"""Which processes map a memfd, and how much of it is theirs, from /proc.

Owns: reading maps and smaps. A process that ends while it is read counts as gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) +(.*)")


def inodes(pid: int, name: str) -> set[int]:
    """Of the memfds called `name` that process `pid` maps."""
    return {inode for inode, path, _ in _mappings(pid) if path.startswith(f"/memfd:{name}")}


def holders(inode: int) -> dict[int, int]:
    """Of each process of this machine that maps the memfd: bytes resident, divided by sharers."""
    found: dict[int, int] = {}
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        for one, path, share in _mappings(pid):
            if one == inode and path.startswith("/memfd:"):
                found[pid] = found.get(pid, 0) + share
    return found


def _mappings(pid: int) -> Iterator[tuple[int, str, int]]:
    """(inode, path, Pss in bytes)."""
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
    """Bytes of physical memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
