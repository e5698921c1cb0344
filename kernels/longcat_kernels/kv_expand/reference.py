"""Expansion in plain torch: the oracle of the kernel, and the CPU path."""

from __future__ import annotations

import torch

from longcat_kernels import kv_rows


def expand(pool: torch.Tensor, slots: torch.Tensor, rank: int, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(kv_rows.unpack(pool.flatten(1)[slots.long()], rank))
