"""LongCat-Flash-Lite's sizes for the final sum, and seeded inputs. For tests, benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch

HIDDEN = 3072
TOP_K = 12
ROUTED_SLOTS = 8  # of 12, on average; the others are identity experts

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Inputs(NamedTuple):
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
    """Rows without an expert are NaN: whoever reads one shows it."""
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, device=device).to(dtype)

    chance = torch.rand(tokens, top_k, generator=random, device=device)
    ids = torch.randint(256, (tokens, top_k), generator=random, device=device, dtype=torch.int32)
    ids[chance >= ROUTED_SLOTS / TOP_K] = -1
    routed = draw(tokens, top_k, width)
    routed[ids < 0] = torch.nan
    weight = torch.rand(tokens, generator=random, device=device) * 2
    return Inputs(routed, ids, draw(tokens, width), weight, draw(tokens, width))


def bytes_moved(tokens: int, width: int = HIDDEN, itemsize: int = 2) -> int:
    """Rows with an expert, x and addend in, out back, ids and weights."""
    return tokens * ((ROUTED_SLOTS + 3) * width * itemsize + 4 * (TOP_K + 1))


def flops(tokens: int, width: int = HIDDEN) -> int:
    return tokens * width * (ROUTED_SLOTS + 3)
