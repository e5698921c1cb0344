"""Which tiles compute which projection: `configs.json`, and a fallback.

`python -m benchmarks.tune.packed_linear` writes the table, from measurements with cold weights.
Serving calls Marlin for a shape that the table lacks, and where it has a null.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

from longcat_kernels.small_linear.configs import Op

TABLE = Path(__file__).with_name("configs.json")
TOKENS = (1, 2, 4)  # a batch takes the entry of the next one up
MOST_TOKENS = TOKENS[-1]
GROUPS = (32, 64, 128)  # inputs that share a scale


class Config(NamedTuple):
    """A program has block_n outputs (8, 16, 32 or 64 of a tile of 64) and all inputs. It reads
    them in pieces of block_k inputs, `ahead` of them before the wait."""

    block_n: int
    block_k: int
    ahead: int
    warps: int

    @property
    def span(self) -> int:
        """Tiles of 16 inputs in a row that a thread has of each piece. They lie in one group."""
        return self.block_n * self.block_k // (1024 * self.warps)


def find(op: Op, rows: int, columns: int, group: int, tokens: int) -> Config | None:
    """The tuned configuration for a weight [rows, columns]; None: call Marlin."""
    if not 0 < tokens <= MOST_TOKENS:
        return None
    return _table().get((shape_key(op, rows, columns, group), bucket(tokens)))


def fallback(group: int) -> Config:
    """For shapes that nobody tuned: two warps, and as many tiles a thread as a group has."""
    return Config(16, 8 * group, ahead=2, warps=2)


def bucket(tokens: int) -> int:
    return next(most for most in TOKENS if tokens <= most)


def shape_key(op: Op, rows: int, columns: int, group: int) -> str:
    return f"{op} {rows}x{columns} g{group}"


@functools.cache
def _table() -> dict[tuple[str, int], Config]:
    return {
        (key, int(tokens)): Config(*values)
        for key, entries in json.loads(TABLE.read_text()).items()
        for tokens, values in entries.items()
        if values is not None
    }
