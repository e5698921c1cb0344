"""Which tiles of the expert GEMM are worth measuring, for each number of tokens.

A step reads every chosen expert's weights once. So at up to 256 tokens (8 rows an expert) bytes in
flight decide: tiles have 16 rows, and as large a K and as many stages as shared memory allows. From
2,048 tokens on the tensor cores decide. Each anchor's space is measured whole; other numbers of
tokens take the best variants of the neighbouring anchors. Owns the space; search.py and timing.py
use it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANCHORS = (1, 8, 64, 512, 2048, 8192)
TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192)
SHARED_MEMORY = 227 << 10  # of a block on Hopper
FP8_BLOCK = 128
_MOST_ACCUMULATORS = 128  # fp32 registers a thread; 255 in all


@dataclass(frozen=True, order=True)
class Tile:
    """m, n, k: rows, columns and depth. group: how many tiles along M share the same columns."""

    m: int
    n: int
    k: int
    group: int
    warps: int
    stages: int

    def __str__(self) -> str:
        """The notation of the CSV files."""
        return f"{self.m}x{self.n}x{self.k} g{self.group} w{self.warps} s{self.stages}"

    def config(self) -> dict[str, int]:
        """The notation of SGLang's files."""
        return {
            "BLOCK_SIZE_M": self.m,
            "BLOCK_SIZE_N": self.n,
            "BLOCK_SIZE_K": self.k,
            "GROUP_SIZE_M": self.group,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def tile_of(config: Mapping[str, Any]) -> Tile:
    """Where SGLang's defaults name no warps and stages, Triton takes 4 and 3."""
    return Tile(
        m=config["BLOCK_SIZE_M"],
        n=config["BLOCK_SIZE_N"],
        k=config["BLOCK_SIZE_K"],
        group=config["GROUP_SIZE_M"],
        warps=config.get("num_warps", 4),
        stages=config.get("num_stages", 3),
    )


@dataclass(frozen=True, order=True)
class Variant:
    """One of the two GEMMs with a tile. tma: weights (and the second one's input) by descriptor.
    by_expert: the first one writes rows in the order of experts, which the second reads by TMA."""

    op: str  # "up" or "down"
    tile: Tile
    tma: bool = False
    by_expert: bool = False


def anchors_of(tokens: int) -> tuple[int, ...]:
    """The anchor itself, or the neighbours on both sides."""
    below = max((a for a in ANCHORS if a <= tokens), default=ANCHORS[0])
    above = min((a for a in ANCHORS if a >= tokens), default=ANCHORS[-1])
    return (below,) if below == above else (below, above)


def space(anchor: int, *, fp8: bool, tma: bool) -> list[Variant]:
    """Both GEMMs with all tiles that fit; the likely ones come first, in case time runs out."""
    tiles = [tile for tile in _tiles(anchor, fp8) if _fits(tile, 1 if fp8 else 2)]
    tiles.sort(key=lambda tile: tile.warps * tile.group)
    kinds = (False, True) if tma else (False,)
    return [
        Variant(op, tile, by_tma) for by_tma in kinds for tile in tiles for op in ("up", "down")
    ]


def _tiles(anchor: int, fp8: bool) -> set[Tile]:
    flat = (FP8_BLOCK,) if fp8 else (64, 128)
    few = _product((16,), (32, 64, 128), (128,), (1,), (4, 8), (3, 4, 5))
    if not fp8:
        few |= _product((16,), (32, 64, 128), (64,), (1,), (4,), (3, 5))
        few |= _product((16,), (32, 64, 128), (256,), (1,), (4, 8), (2, 3, 4))
    wide = _product((64,), (64, 128, 256), flat, (1,), (4, 8), (3, 4))
    if anchor <= 8:
        return few
    if anchor == 64:
        return few | wide
    if anchor == 512:
        some = _product((16,), (64, 128), flat, (1,), (4,), (3, 4))
        middle = _product((32,), (64, 128, 256), flat, (1, 16), (4, 8), (3, 4))
        return some | middle | wide | _product((64,), (128, 256), flat[:1], (16,), (4, 8), (3, 4))
    return _product((64, 128), (128, 256), flat, (1, 16), (4, 8), (3, 4)) | wide


def _product(*axes: Sequence[int]) -> set[Tile]:
    return {Tile(*values) for values in itertools.product(*axes)}


def _fits(tile: Tile, itemsize: int) -> bool:
    """Room in shared memory and registers; enough for each warp to do; enough loads in flight."""
    loads = (tile.m + tile.n) * tile.k * itemsize
    return (
        loads * tile.stages <= SHARED_MEMORY
        and tile.m * tile.n <= _MOST_ACCUMULATORS * tile.warps * 32
        and (tile.warps == 4 or tile.n * max(tile.m, tile.k) >= 128 * 128)
        and loads * (tile.stages - 1) >= 8 << 10
    )
