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
FEW = 4  # most tokens of the program `few`
MOST_TOKENS = TOKENS[-1]  # for more tokens cuBLAS has good tiles to choose from

BLOCK = 128  # rows and columns of a block-FP8 weight that share a scale

Op = Literal["linear", "swiglu_linear"]
PairOp = Literal["pair_linear", "pair_swiglu"]
PAIR_OF: dict[Op, PairOp] = {"linear": "pair_linear", "swiglu_linear": "pair_swiglu"}


class Config(NamedTuple):
    """program: "gemv" (one token), "few" (up to four, block FP8), "mma", or "pair" for pairs. Tiles
    have block_n rows and block_k columns, and `ahead` of them are read before the wait (block FP8
    and mma: so many tiles of 128 columns; pair: pieces of each row, into L2). stages: of the
    pipeline (mma and pair). Block FP8: block_n divides 128, which divides block_k."""

    program: str
    block_n: int
    block_k: int
    ahead: int
    stages: int
    warps: int


def find(op: Op | PairOp, rows: int, columns: int, tokens: int, fp8: bool = False) -> Config | None:
    """The tuned configuration for a weight [rows, columns], bf16 or block FP8; None: call the
    library."""
    if not 0 < tokens <= MOST_TOKENS:
        return None
    return _table().get((shape_key(op, rows, columns, fp8), bucket(tokens)))


def fallback(columns: int, tokens: int, fp8: bool = False) -> Config:
    """For shapes that nobody tuned."""
    if fp8:
        program = "gemv" if tokens == 1 else "few" if tokens <= FEW else "mma"
        rows = 16 if program == "mma" else 4
        return Config(program, block_n=rows, block_k=128, ahead=1, stages=4, warps=2)
    power = max(1 << (columns - 1).bit_length(), 16)
    if tokens == 1:
        return Config("gemv", block_n=4, block_k=min(power, 1024), ahead=2, stages=1, warps=4)
    return Config("mma", block_n=16, block_k=min(power, 256), ahead=1, stages=4, warps=4)


def pair_fallback(op: PairOp) -> Config:
    """For shapes that nobody tuned."""
    return Config("pair", 128 if op == "pair_swiglu" else 64, 128, ahead=2, stages=4, warps=4)


def bucket(tokens: int) -> int:
    return next(most for most in TOKENS if tokens <= most)


def shape_key(op: Op | PairOp, rows: int, columns: int, fp8: bool = False) -> str:
    return f"{'fp8 ' if fp8 else ''}{op} {rows}x{columns}"


@functools.cache
def _table() -> dict[tuple[str, int], Config]:
    return {
        (key, int(tokens)): Config(*values)
        for key, entries in json.loads(TABLE.read_text()).items()
        for tokens, values in entries.items()
        if values is not None
    }
