"""Seeded inputs of storing, at LongCat-Flash-Lite's sizes. For tests and benchmarks."""

from __future__ import annotations

import torch

from longcat_kernels import kv_rows
from longcat_kernels.kv_expand.workloads import make_inputs as expanded
from longcat_kernels.lite import KV_LORA, ROPE

TOKENS = (256, 2048, 8192, 16_384)  # of a prefill chunk


def make_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    rank: int = KV_LORA,
    rope: int = ROPE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A pool, slots in random order, and the latents and rope parts of the tokens: these lie side
    by side in wider rows, as the first projection leaves them."""
    widths = {"rank": rank, "rope": rope}
    pool, slots = expanded(tokens, seed=seed, device=device, **widths)
    random = torch.Generator(device).manual_seed(seed + 1)
    rows = torch.randn(tokens, rank + rope, generator=random, device=device).bfloat16()
    return pool, slots, rows[:, :rank], rows[:, rank:]


def bytes_moved(tokens: int) -> int:
    """bf16 rows and slots in, FP8 rows and rounded latents out."""
    row = kv_rows.row_width(KV_LORA, ROPE, fp8=True) + 2 * (2 * KV_LORA + ROPE)
    return tokens * (row + 8)
