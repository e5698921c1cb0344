"""Seeded inputs of the expansion, at LongCat-Flash-Lite's sizes. For tests and benchmarks."""

from __future__ import annotations

import torch

from longcat_kernels import kv_rows
from longcat_kernels.lite import KV_LORA, ROPE

TOKENS = (256, 4096, 16_384, 65_536)  # of a cached prefix, or of one chunk of it


def make_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    rank: int = KV_LORA,
    rope: int = ROPE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A pool of half as many rows again, and `tokens` of its slots in random order, int64."""
    random = torch.Generator(device).manual_seed(seed)
    rows = tokens + tokens // 2 + 1
    values = torch.randn(rows, 1, rank + rope, generator=random, device=device).bfloat16()
    slots = torch.randperm(rows - 1, generator=random, device=device)[:tokens] + 1
    return kv_rows.pack(values, rank), slots


def bytes_moved(tokens: int) -> int:
    """FP8 rows and slots in, bf16 rows out."""
    row = kv_rows.row_width(KV_LORA, ROPE, fp8=True) + 2 * (KV_LORA + ROPE)
    return tokens * (row + 8)
