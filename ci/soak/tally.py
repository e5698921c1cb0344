"""The record of one server of a soak, and whether its load was high enough.

Owns: the counts, the faults with what reproduces them, the memory of the server's processes, and
the conditions on a whole run. `random_requests` judges a single answer.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ci.soak.random_requests import Request

# Allowed growth of a process. 2 MB were measured; 64 MB over the 1,667 requests of a long run would
# be 39 KB per request.
GROWTH_MB = 64


@dataclass
class Tally:
    """What one server was asked and what it did. `faults` is empty if everything was right."""

    flags: dict[str, Any]
    counts: Counter[str] = field(default_factory=Counter)
    memory_mb: list[dict[str, int]] = field(default_factory=list)  # after each wave
    faults: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0

    def add_fault(self, what: str, request: Request | None = None, **facts: Any) -> None:
        asked = {"request": asdict(request)} if request else {}
        self.faults.append({"fault": what, "flags": self.flags, **asked, **facts})

    def growth_mb(self) -> dict[str, int]:
        """Growth per process, from the end of the first third to the last wave."""
        third, last = self.memory_mb[len(self.memory_mb) // 3], self.memory_mb[-1]
        return {name: last[name] - third.get(name, 0) for name in last}

    def require_load(self) -> None:
        """Add a fault for each thing that this soak must cause and that did not happen."""
        if self.faults:
            return
        if not self.counts["thrown_out"]:
            self.add_fault("no request was thrown out: the load is too light")
        if "schedule_conservativeness" in self.flags and not self.counts["retracted"]:
            self.add_fault("the pool was never full: it is too large for this load")
        if max(self.growth_mb().values()) > GROWTH_MB:
            self.add_fault(f"memory grew by {self.growth_mb()} MB, at most {GROWTH_MB} expected")

    @property
    def mixed(self) -> bool:
        return "enable_mixed_chunk" in self.flags

    def progress(self, done: int, count: int) -> None:
        """After each wave, print a line to stderr and record the memory of the processes."""
        self.memory_mb.append(memory_mb())
        print(
            f"{self.flags}: {done}/{count} requests, {self.seconds:.0f} s, "
            f"{self.counts['thrown_out']} thrown out, {len(self.faults)} faults",
            file=sys.stderr,
            flush=True,
        )

    def report(self) -> dict[str, Any]:
        return {
            "flags": self.flags,
            "counts": dict(sorted(self.counts.items())),
            "memory_mb": self.memory_mb[-1:],
            "growth_mb": self.growth_mb() if self.memory_mb else {},
            "seconds": round(self.seconds),
            "faults": len(self.faults),
        }


def memory_mb() -> dict[str, int]:
    """Resident memory of the server's processes, by name. They descend from the harness's fork
    server, which is a child of this process and is not counted."""
    parents: dict[int, int] = {}
    processes: dict[int, tuple[str, int]] = {}  # pid -> name, MB
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = [line.partition(":\t") for line in file.read_text().splitlines()]
        except (FileNotFoundError, ProcessLookupError):  # the process has just ended
            continue
        status = {name: value.strip() for name, _, value in lines}
        parents[int(status["Pid"])] = int(status["PPid"])
        if "VmRSS" in status:
            processes[int(status["Pid"])] = status["Name"], int(status["VmRSS"].split()[0]) // 1024
    sizes: Counter[str] = Counter()
    for pid, (name, size) in processes.items():
        if os.getpid() in _ancestors(parents.get(pid, 0), parents):
            sizes[name] += size
    return dict(sizes)


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid
