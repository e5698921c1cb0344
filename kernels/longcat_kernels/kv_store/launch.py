"""The launch of storing."""

from __future__ import annotations

import torch

from longcat_kernels.kv_rows import Rows
from longcat_kernels.kv_store._triton import _store_kernel

WARPS = 4  # 4 values a thread


def round_and_store(
    rows: Rows, slots: torch.Tensor, latents: torch.Tensor, ropes: torch.Tensor
) -> None:
    tokens = slots.shape[0]
    if tokens:
        _store_kernel[(tokens,)](
            latents,
            ropes,
            slots,
            *rows,
            latents.stride(0),
            ropes.stride(0),
            rows.stride,
            RANK=rows.latents.shape[1],
            ROPE=rows.ropes.shape[1],
            num_warps=WARPS,
        )
