"""Which tiles compute a mixture of few tokens: `configs.json`, and a fallback.

`python -m benchmarks.tune.small_experts` writes the table, from measurements with cold weights.
Serving calls SGLang's grouped GEMM for sizes that the table lacks, and where it has a null: there
the grouped GEMM was faster.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("configs.json")
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16)  # a batch takes the entry of the next one up
MOST_TOKENS = TOKENS[-1]


class Config(NamedTuple):
    """Rows of a program, columns of a tile, tiles that are asked for ahead, and warps of the first
    launch; the same without columns, and slots ahead, of the second."""

    block_n: int
    block_k: int
    ahead: int
    warps: int
    down_n: int
    down_ahead: int
    down_warps: int


def find(columns: int, hidden: int, tokens: int, fp8: bool) -> Config | None:
    """The tuned configuration for experts of `columns` columns on this rank; None: call SGLang."""
    if not 0 < tokens <= MOST_TOKENS:
        return None
    return _table().get((key(columns, hidden, fp8), bucket(tokens)))


def fallback(fp8: bool) -> Config:
    """For sizes that nobody tuned."""
    return Config(4, 1024, 2, 4, 4, 8, 4) if fp8 else Config(4, 512, 2, 4, 2, 8, 4)


def bucket(tokens: int) -> int:
    return next(most for most in TOKENS if tokens <= most)


def key(columns: int, hidden: int, fp8: bool) -> str:
    return f"{'fp8' if fp8 else 'bf16'} {columns}x{hidden}"


@functools.cache
def _table() -> dict[tuple[str, int], Config]:
    return {
        (name, int(tokens)): Config(*values)
        for name, entries in json.loads(TABLE.read_text()).items()
        for tokens, values in entries.items()
        if values is not None
    }
