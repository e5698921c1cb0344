"""LongCat-Flash-Lite's experts on one rank, and seeded inputs. For tests, tuning and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels import lite
from longcat_kernels.fp8_layout import quantise_blocks
from longcat_kernels.small_experts.configs import TOKENS
from longcat_kernels.small_experts.reference import Weights

BATCHES = TOKENS


class Shape(NamedTuple):
    """experts of this rank, and how many columns of each."""

    name: str
    experts: int
    columns: int
    hidden: int = lite.HIDDEN


LITE = Shape("tp1", lite.ROUTED, lite.EXPERT_FFN)
SHAPES = (
    LITE,
    *(Shape(f"tp{n}", lite.ROUTED, lite.EXPERT_FFN // n) for n in (2, 4, 8)),
)  # with expert parallelism the experts are as wide as in tp1


class Inputs(NamedTuple):
    x: torch.Tensor  # [T, hidden] bf16
    ids: torch.Tensor  # [T, TOP_K] int32
    factors: torch.Tensor  # [T, TOP_K] fp32
    identity: torch.Tensor  # [T] fp32


def make_weights(shape: Shape, *, fp8: bool, seed: int, device: torch.device | str) -> Weights:
    random = torch.Generator(device).manual_seed(seed)

    def matrices(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        kind = torch.float8_e4m3fn if fp8 else torch.bfloat16
        out = torch.empty(shape.experts, rows, columns, dtype=kind, device=device)
        blocks = -(-rows // 128), -(-columns // 128)
        scales = torch.empty(shape.experts, *blocks, device=device) if fp8 else None
        for e in range(shape.experts):
            weight = torch.randn(rows, columns, generator=random, device=device) / columns**0.5
            if scales is None:
                out[e] = weight
            else:
                out[e], scales[e] = quantise_blocks(weight)
        return out, scales

    up, up_scales = matrices(2 * shape.columns, shape.hidden)
    down, down_scales = matrices(shape.hidden, shape.columns)
    return Weights(up, down, up_scales, down_scales)


def make_inputs(shape: Shape, tokens: int, *, seed: int, device: torch.device | str) -> Inputs:
    """Every token has TOP_K slots: different experts of this rank in ROUTED_SLOTS of them at most,
    and id -1 in the others, in a random order."""
    random = torch.Generator().manual_seed(seed)
    routed = min(lite.ROUTED_SLOTS, shape.experts)
    ids = torch.full((tokens, lite.TOP_K), -1, dtype=torch.int32)
    for t in range(tokens):
        places = torch.randperm(lite.TOP_K, generator=random)[:routed]
        ids[t, places] = torch.randperm(shape.experts, generator=random)[:routed].int()
    x = torch.randn(tokens, shape.hidden, generator=random).bfloat16()
    factors = torch.rand(tokens, lite.TOP_K, generator=random)
    identity = torch.rand(tokens, generator=random)
    return Inputs(*(tensor.to(device) for tensor in (x, ids, factors, identity)))


def bytes_moved(shape: Shape, tokens: int, *, fp8: bool) -> int:
    """The weights of the slots, each read once by its slot."""
    width = 1 if fp8 else 2
    slots = tokens * min(lite.ROUTED_SLOTS, shape.experts)
    return slots * 3 * shape.columns * shape.hidden * width
