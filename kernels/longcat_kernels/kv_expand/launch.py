"""The launch of the expansion."""

from __future__ import annotations

import torch
import triton

from longcat_kernels.kv_expand._triton import _expand_kernel
from longcat_kernels.kv_rows import Rows

ROWS, WARPS = 8, 4  # 4 KiB of latents a program: 32 values a thread


def expand(rows: Rows, slots: torch.Tensor, out: torch.Tensor) -> None:
    tokens = slots.shape[0]
    if tokens:
        _expand_kernel[(triton.cdiv(tokens, ROWS),)](
            *rows,
            slots,
            out,
            tokens,
            rows.stride,
            RANK=rows.latents.shape[1],
            ROPE=rows.ropes.shape[1],
            ROWS=ROWS,
            num_warps=WARPS,
        )
