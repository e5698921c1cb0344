"""What `benchmarks/int4.sh` has measured, against its goals.

    python -m benchmarks.int4_goals FOLDER      # the script's OUT

Owns: the goals of 4-bit weights and this table. A step without a result has no line: its engine
failed, or it has not run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Goal:
    """Of a step. Memory in GiB: taken_gib is the GPU's, pinned_gib the host's."""

    kv_tokens: int = 0  # at least
    taken_gib: float = float("inf")  # at most
    pinned_gib: float = float("inf")  # at most

    def met(self, row: dict[str, Any]) -> bool:
        return bool(
            row["kv_tokens"] >= self.kv_tokens
            and row["taken_gib"][0] <= self.taken_gib
            and row["pinned_gib"] <= self.pinned_gib
        )


GOALS = {
    "24gb": Goal(4 * (4096 + 96), taken_gib=24564 / 1024, pinned_gib=20e9 / 2**30),
    "32gb": Goal(100_000, taken_gib=32607 / 1024),
    "48gb": Goal(500_000, taken_gib=46068 / 1024),
    "h200": Goal(),
    "drafts": Goal(),
}


def main() -> None:
    for line in lines(Path(sys.argv[1])):
        print(line)


def lines(folder: Path) -> Iterator[str]:
    for step, goal in GOALS.items():
        file = folder / f"{step}.json"
        results = json.loads(file.read_text())["results"] if file.exists() else {}
        for row in (row for rows in results.values() for row in rows):
            yield f"{step:7s} {describe(row)}{verdict(goal, row)}"


def describe(row: dict[str, Any]) -> str:
    return (
        f"{row['batch']:3d} x {row['input']} tokens: TPOT {row['tpot_ms']:.3f} ms, prefill "
        f"{row['prefill_tok_s']:,.0f} tok/s, {row['kv_tokens']:,} tokens of KV cache, "
        f"{row['taken_gib'][0]:.2f} GiB of the GPU taken, {row['pinned_gib']:.1f} GiB pinned"
    )


def verdict(goal: Goal, row: dict[str, Any]) -> str:
    if goal == Goal():
        return ""  # its speed is compared with other formats by hand
    return " -- met" if goal.met(row) else f" -- MISSED: {goal}"


if __name__ == "__main__":
    main()
