"""The identity experts' part in Triton: one program per token and 1,024 columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


# Scalar loads gain nothing from alignment, and a variant less has to be compiled.
@triton.jit(do_not_specialize_on_alignment=["weight_ptr"])
def _add_identity_kernel(
    out_ptr, x_ptr, weight_ptr, width, out_stride, x_stride, BLOCK: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < width
    weight = tl.load(weight_ptr + t)
    x = tl.load(x_ptr + t * x_stride + column, mask=live, other=0.0).to(tl.float32)
    cells = out_ptr + t * out_stride + column
    out = tl.load(cells, mask=live, other=0.0).to(tl.float32)
    tl.store(cells, (out + weight * x).to(out_ptr.dtype.element_ty), mask=live)


def add_identity_(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    tokens, width = out.shape
    if tokens:
        block = min(triton.next_power_of_2(width), 1024)
        # torch may give a single row any stride, and 1 would be a variant of its own.
        strides = (out.stride(0), x.stride(0)) if tokens > 1 else (width, width)
        _add_identity_kernel[(tokens, triton.cdiv(width, block))](
            out, x, weight.contiguous(), width, *strides, BLOCK=block, num_warps=4
        )
    return out
