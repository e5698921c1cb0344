"""LongCat-Flash-Lite's sizes for the identity experts, and seeded inputs. For tests, benchmarks."""

from __future__ import annotations

import torch

HIDDEN = 3072

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def make_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    width: int = HIDDEN,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """out and x [T, width] of `dtype`, weight [T] fp32 in [0, 2): 6 times a few percent each."""
    random = torch.Generator().manual_seed(seed)
    out = torch.randn(tokens, width, generator=random).to(dtype)
    x = torch.randn(tokens, width, generator=random).to(dtype)
    weight = torch.rand(tokens, generator=random) * 2
    return out.to(device), x.to(device), weight.to(device)


def bytes_moved(tokens: int, width: int = HIDDEN, itemsize: int = 2) -> int:
    """out and x in, out back, and the weights."""
    return tokens * (3 * width * itemsize + 4)


def flops(tokens: int, width: int = HIDDEN) -> int:
    return 2 * tokens * width
