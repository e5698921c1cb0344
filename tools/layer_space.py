"""What a layer's tiles are chosen from, for steps of which sizes. For tools/tune_layer.py.

A kernel beside others wants another tile than alone, where tools/tune_experts.py and
kernels/benchmarks/tune_small_linear.py measure it; the candidates are few around the best of those,
because each takes a whole layer to measure. Owns sizes, axes, and which table entries a size is
written to; layer_search.py searches, layer_tables.py writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expert_space import Tile, Variant
from longcat_kernels.small_linear.configs import Config
from longcat_kernels.small_linear.workloads import LITE

Choice = Tile | Config | str | None  # an expert tile, a projection (None: the library), attention
Choices = dict[str, Choice]  # by axis

EXPERTS = {"expert_up": "up", "expert_down": "down"}  # axis and GEMM
ATTENTION = "attention"
PROJECTIONS = {shape.name: shape for shape in LITE}
ROWS = 16  # of an expert tile, enough for any of these sizes
SPLIT_TOKENS = 16  # what our attention reads grows with the tokens


@dataclass(frozen=True)
class Size:
    """`requests` of `width` tokens, and the keys of both tables that its winners go to."""

    requests: int
    width: int
    experts: tuple[int, ...]
    projections: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return self.requests * self.width

    @property
    def name(self) -> str:
        return f"{self.requests}x{self.width}"


SIZES = {
    size.name: size
    for size in (
        Size(1, 1, experts=(1,)),  # projections of one token have a program of their own
        Size(1, 4, experts=(2, 4), projections=(2, 4)),
        Size(8, 1, experts=(8,), projections=(8,)),
        Size(16, 1, experts=(16,), projections=(16,)),
        Size(30, 1, experts=(24, 32), projections=(32,)),
        Size(64, 1, experts=(48, 64)),
    )
}


@dataclass(frozen=True)
class Axis:
    """One thing to choose. Not taken: measured for the record, others decide it."""

    name: str
    choices: tuple[Choice, ...]
    taken: bool = True


TILES = tuple(
    Tile(ROWS, n, k, 1, warps, stages)
    for n, k, warps, stages in (
        *((64, 128, 4, 3), (32, 128, 4, 3), (32, 128, 4, 5), (64, 128, 4, 5), (64, 64, 4, 5)),
        *((32, 64, 4, 5), (32, 64, 4, 3), (64, 256, 4, 2), (64, 256, 4, 3), (64, 256, 4, 4)),
        *((128, 128, 4, 3), (128, 128, 8, 4), (32, 256, 4, 2), (32, 256, 4, 3), (32, 256, 4, 4)),
        *((128, 64, 4, 5), (128, 64, 4, 3)),
    )
)
# 192 blocks of 16 of a weight's 3,072 rows fill 132 SMs unevenly; not measured yet.
_NARROW = ((8, 256, 0, 6, 2), (8, 512, 0, 4, 2), (8, 512, 1, 4, 4))
_MMA = {  # block_n, block_k, ahead, stages, warps
    "down": (
        *((16, 256, 2, 6, 2), (16, 256, 1, 4, 2), (16, 512, 0, 3, 2), (16, 256, 0, 6, 2)),
        *((16, 128, 1, 6, 2), (16, 128, 0, 6, 2), (32, 128, 1, 4, 4)),
        *_NARROW,
    ),
    "q_b": (
        *((16, 256, 0, 6, 2), (16, 256, 2, 3, 2), (16, 128, 1, 6, 2), (32, 128, 1, 4, 4)),
        *((16, 512, 0, 3, 2), (32, 256, 0, 3, 4)),
    ),
    "o": (
        *((16, 256, 0, 6, 2), (16, 256, 2, 3, 2), (16, 128, 1, 6, 2), (16, 256, 1, 4, 2)),
        (16, 512, 0, 3, 2),
        *_NARROW,
    ),
    "gate_up": (
        *((16, 128, 1, 6, 2), (16, 128, 1, 4, 2), (16, 128, 0, 4, 2), (16, 64, 2, 6, 2)),
        *((16, 256, 0, 3, 4), (32, 64, 1, 4, 4)),
    ),
    "qkv_a": (
        *((16, 256, 1, 4, 2), (16, 128, 1, 6, 2), (16, 256, 2, 6, 2), (16, 512, 0, 3, 2)),
        *_NARROW,
    ),
}
CONFIGS = {name: tuple(Config("mma", *mma) for mma in all_) for name, all_ in _MMA.items()}


def axes(size: Size, ready: Callable[[Variant], bool] = lambda variant: True) -> list[Axis]:
    """ready: whether a variant of an expert GEMM can be launched."""
    found = [
        Axis(name, tuple(tile for tile in TILES if ready(Variant(op, tile))))
        for name, op in EXPERTS.items()
    ]
    if size.projections:
        found += [Axis(name, (None, *configs)) for name, configs in CONFIGS.items()]
    return [*found, Axis(ATTENTION, attentions(size), taken=False)]


def attentions(size: Size) -> tuple[str, ...]:
    flashinfer = ("flashinfer",) if size.width == 1 else ()
    return (*flashinfer, *(("split",) if size.tokens <= SPLIT_TOKENS else ()), "fa3")


def text(choice: Choice) -> str:
    """As the CSV has it."""
    if isinstance(choice, Config):
        return "-".join(map(str, choice))
    return str(choice or "library")


def jobs(sizes: Sequence[Size]) -> list[tuple[int, Variant]]:
    """Every launch of an expert GEMM that the search may ask for."""
    return [
        (size.tokens, Variant(op, tile))
        for size in sizes
        for op in EXPERTS.values()
        for tile in TILES
    ]
