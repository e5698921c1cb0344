"""Seeded inputs of the experts' sum, at LongCat-Flash-Lite's sizes. For tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels.lite import HIDDEN, ROUTED, ROUTED_SLOTS, TOP_K

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
IDENTITY_BATCHES = (*BATCHES, 8192)


class Inputs(NamedTuple):
    """The arguments of `finalize`."""

    routed: torch.Tensor
    ids: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor
    addend: torch.Tensor


def make_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    width: int = HIDDEN,
    top_k: int = TOP_K,
) -> Inputs:
    """Rows without an expert are NaN, so that a kernel which reads one shows it."""
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, device=device).to(dtype)

    chance = torch.rand(tokens, top_k, generator=random, device=device)
    ids = torch.randint(ROUTED, (tokens, top_k), generator=random, device=device, dtype=torch.int32)
    ids[chance >= ROUTED_SLOTS / TOP_K] = -1
    routed = draw(tokens, top_k, width)
    routed[ids < 0] = torch.nan
    weight = torch.rand(tokens, generator=random, device=device) * 2
    return Inputs(routed, ids, draw(tokens, width), weight, draw(tokens, width))


def make_identity_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    width: int = HIDDEN,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The arguments of `add_identity_`: out and x [T, width] of `dtype`, weight [T] fp32 in [0, 2),
    which is what a few identity experts of 6 times a few percent each add up to."""
    random = torch.Generator().manual_seed(seed)
    out = torch.randn(tokens, width, generator=random).to(dtype)
    x = torch.randn(tokens, width, generator=random).to(dtype)
    weight = torch.rand(tokens, generator=random) * 2
    return out.to(device), x.to(device), weight.to(device)


def bytes_moved(tokens: int, width: int = HIDDEN, itemsize: int = 2) -> int:
    """`finalize`: rows with an expert, x and addend in, out back, ids and weights."""
    return tokens * ((ROUTED_SLOTS + 3) * width * itemsize + 4 * (TOP_K + 1))


def flops(tokens: int, width: int = HIDDEN) -> int:
    return tokens * width * (ROUTED_SLOTS + 3)


def identity_bytes_moved(tokens: int, width: int = HIDDEN, itemsize: int = 2) -> int:
    """`add_identity_`: out and x in, out back, and the weights."""
    return tokens * (3 * width * itemsize + 4)


def identity_flops(tokens: int, width: int = HIDDEN) -> int:
    return 2 * tokens * width
