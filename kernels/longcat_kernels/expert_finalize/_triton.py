"""The final sum of a mixture of experts in Triton: one program per token and block of columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options

BLOCK = 1024  # columns: 8 a thread, 16-byte loads


# Scalar loads gain nothing from alignment, and a variant less has to be compiled.
@triton.jit(do_not_specialize_on_alignment=["ids_ptr", "weight_ptr"])
def _finalize_kernel(
    out_ptr,
    routed_ptr,
    ids_ptr,
    x_ptr,
    weight_ptr,
    addend_ptr,
    width,
    K: tl.constexpr,
    IDENTITY: tl.constexpr,
    ADDEND: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < width
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in tl.static_range(K):
        there = tl.load(ids_ptr + t * K + k) >= 0
        row = routed_ptr + (t * K + k) * width
        total += tl.load(row + column, mask=live & there, other=0.0).to(tl.float32)
    if IDENTITY:
        x = tl.load(x_ptr + t * width + column, mask=live, other=0.0).to(tl.float32)
        total += tl.load(weight_ptr + t) * x
    if ADDEND:
        total += tl.load(addend_ptr + t * width + column, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + t * width + column, total.to(out_ptr.dtype.element_ty), mask=live)


def finalize(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    addend: torch.Tensor | None,
) -> torch.Tensor:
    tokens, k, width = routed.shape
    out = torch.empty((tokens, width), dtype=routed.dtype, device=routed.device)
    if tokens:
        block = min(triton.next_power_of_2(width), BLOCK)
        _finalize_kernel[(tokens, triton.cdiv(width, block))](
            out,
            routed.contiguous(),
            ids.contiguous(),
            _dense(x, out),
            _dense(weight, out),
            _dense(addend, out),
            width,
            K=k,
            IDENTITY=x is not None,
            ADDEND=addend is not None,
            BLOCK=block,
            num_warps=4,
            **pdl_options(routed),
        )
    return out


def _dense(tensor: torch.Tensor | None, unused: torch.Tensor) -> torch.Tensor:
    return unused if tensor is None else tensor.contiguous()
