"""LongCat-Flash-Lite's sizes for quantised activations, and seeded inputs. For tests."""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels.fp8_inputs import GROUP

HIDDEN, FFN = 3072, 6144
EPS = 1e-5

BATCHES = (1, 2, 4, 8, 16, 30, 64, 128, 256, 512, 1024, 2048, 8192)


class Inputs(NamedTuple):
    """Of residual add + RMSNorm, and of SwiGLU."""

    x: torch.Tensor  # [T, hidden]
    residual: torch.Tensor
    weight: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [T, 2 ffn]


def make_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    hidden: int = HIDDEN,
    ffn: int = FFN,
) -> Inputs:
    """bf16; groups differ in size by up to a factor of 100, so that a scale of another shows."""
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, device=device)

    def spread(width: int) -> torch.Tensor:
        size = 10 ** (2 * torch.rand(width // GROUP, generator=random, device=device) - 1)
        return size.repeat_interleave(GROUP)

    parts = (
        draw(tokens, hidden),
        draw(tokens, hidden),
        draw(hidden) * spread(hidden),
        draw(tokens, 2 * ffn) * spread(2 * ffn),
    )
    return Inputs(*(part.to(torch.bfloat16) for part in parts))


def bytes_normed(tokens: int, hidden: int = HIDDEN) -> int:
    """x and residual in; residual, normed, q and scales out; the weights once."""
    return tokens * (hidden * (2 + 2 + 2 + 2 + 1) + 4 * hidden // GROUP) + 2 * hidden


def bytes_swiglu(tokens: int, ffn: int = FFN) -> int:
    """gate and up in; q and scales out."""
    return tokens * (ffn * (2 + 2 + 1) + 4 * ffn // GROUP)
