"""Which kernel with which tiles computes which projection: `configs.json`, and a fallback.

`python -m benchmarks.tune.linear` writes the table, from measurements with cold weights. Serving
calls the library for a shape that the table lacks, and where it has a null: there cuBLAS was
faster.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Literal, NamedTuple

TABLE = Path(__file__).with_name("configs.json")
TOKENS = (1, 2, 4, 8, 16, 32)  # a batch takes the entry of the next one up
MOST_TOKENS = TOKENS[-1]  # for more tokens cuBLAS has good tiles to choose from

Op = Literal["linear", "swiglu_linear"]


class Config(NamedTuple):
    """program: "gemv" (one token only) or "mma". Tiles have block_n rows and block_k columns, and
    `ahead` of them are read before the wait. stages: of the pipeline (mma only)."""

    program: str
    block_n: int
    block_k: int
    ahead: int
    stages: int
    warps: int


def find(op: Op, rows: int, columns: int, tokens: int) -> Config | None:
    """The tuned configuration for a weight [rows, columns]; None: call the library."""
    if not 0 < tokens <= MOST_TOKENS:
        return None
    return _table().get((op, rows, columns, bucket(tokens)))


def fallback(columns: int, tokens: int) -> Config:
    """For shapes that nobody tuned."""
    power = max(1 << (columns - 1).bit_length(), 16)
    if tokens == 1:
        return Config("gemv", block_n=4, block_k=min(power, 1024), ahead=2, stages=1, warps=4)
    return Config("mma", block_n=16, block_k=min(power, 256), ahead=1, stages=4, warps=4)


def bucket(tokens: int) -> int:
    return next(most for most in TOKENS if tokens <= most)


def shape_key(op: Op, rows: int, columns: int) -> str:
    return f"{op} {rows}x{columns}"


@functools.cache
def _table() -> dict[tuple[str, int, int, int], Config]:
    table = {}
    for key, entries in json.loads(TABLE.read_text()).items():
        op, _, shape = key.partition(" ")
        rows, columns = map(int, shape.split("x"))
        for tokens, values in entries.items():
            if values is not None:
                table[op, rows, columns, int(tokens)] = Config(*values)
    return table
