"""Seeded inputs of routing, at LongCat-Flash-Lite's sizes. For tests and benchmarks."""

from __future__ import annotations

import torch

from longcat_kernels.lite import EXPERTS, HIDDEN, ROUTED, ROUTED_SCALE, TOP_K
from longcat_kernels.moe_router.reference import Options

OPTIONS = Options(TOP_K, ROUTED, ROUTED_SCALE)

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def make_inputs(
    tokens: int, *, seed: int, device: torch.device | str, experts: int = EXPERTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, experts] and a correction bias [experts] about as large as a score, both fp32."""
    random = torch.Generator(device).manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=random, device=device) * 2
    bias = torch.randn(experts, generator=random, device=device) / experts
    return logits, bias


def make_tokens(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    experts: int = EXPERTS,
    hidden: int = HIDDEN,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [T, hidden] bf16, weight [experts, hidden] fp32 and bias [experts] fp32, whose logits are
    spread as those of `make_inputs`."""
    random = torch.Generator(device).manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=random, device=device).bfloat16()
    weight = torch.randn(experts, hidden, generator=random, device=device) * 2 / hidden**0.5
    bias = torch.randn(experts, generator=random, device=device) / experts
    return x, weight, bias


def bytes_moved(tokens: int) -> int:
    """Logits in, weights, ids and identity weight out; the bias once."""
    return 4 * (tokens * (EXPERTS + 2 * TOP_K + 1) + EXPERTS)


def flops(tokens: int) -> int:
    """Softmax (4 per logit), bias, and one comparison per logit and chosen expert."""
    return tokens * EXPERTS * (5 + TOP_K)


def bytes_moved_from_tokens(tokens: int) -> int:
    """Hidden states in and the routing out; weight and bias once."""
    return 2 * tokens * HIDDEN + 4 * (tokens * (2 * TOP_K + 1) + EXPERTS * (HIDDEN + 1))


def flops_from_tokens(tokens: int) -> int:
    return flops(tokens) + 2 * tokens * HIDDEN * EXPERTS
