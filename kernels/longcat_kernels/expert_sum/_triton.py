"""The end of a mixture of experts in Triton.

`_finalize_kernel`, `_add_identity_kernel`   a program per token and block of 1,024 columns
`_finalize_norm_kernel`                      a program per token: the norm needs the whole row
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options

BLOCK = 1024  # columns: 8 for each of 128 threads, which are loads of 16 bytes


@triton.jit
def _total(
    routed_ptr,
    ids_ptr,
    x_ptr,
    weight_ptr,
    addend_ptr,
    t,
    column,
    live,
    width,
    K: tl.constexpr,
    IDENTITY: tl.constexpr,
    ADDEND: tl.constexpr,
):
    """Columns of token t's sum, fp32. The order of the terms is the same for every block size."""
    total = tl.zeros(column.shape, dtype=tl.float32)
    for k in tl.static_range(K):
        # A slot with a negative id has no expert here. Nobody wrote its row, which may hold NaN,
        # so the mask keeps the row from being read at all.
        has_expert = tl.load(ids_ptr + t * K + k) >= 0
        row = routed_ptr + (t * K + k) * width
        total += tl.load(row + column, mask=live & has_expert, other=0.0).to(tl.float32)
    if IDENTITY:
        x = tl.load(x_ptr + t * width + column, mask=live, other=0.0).to(tl.float32)
        total += tl.load(weight_ptr + t) * x
    if ADDEND:
        total += tl.load(addend_ptr + t * width + column, mask=live, other=0.0).to(tl.float32)
    return total


# Scalar loads gain nothing from alignment, and without it there are fewer variants to compile.
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
    if PDL:  # every input was written by a kernel shortly before
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    inputs = (routed_ptr, ids_ptr, x_ptr, weight_ptr, addend_ptr)
    total = _total(*inputs, t, column, live, width, K, IDENTITY, ADDEND)
    tl.store(out_ptr + t * width + column, total.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize_on_alignment=["ids_ptr", "weight_ptr"])
def _finalize_norm_kernel(
    out_ptr,
    residual_ptr,  # read, and written
    norm_ptr,
    eps,
    routed_ptr,
    ids_ptr,
    x_ptr,
    weight_ptr,
    addend_ptr,
    width,
    K: tl.constexpr,
    IDENTITY: tl.constexpr,
    ADDEND: tl.constexpr,
    BLOCK: tl.constexpr,  # width, rounded up to a power of two
    PDL: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    live = column < width
    # No kernel of a step writes the norm's weights, so they are read before the wait.
    norm = tl.load(norm_ptr + column, mask=live, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    cells = residual_ptr + t * width + column
    residual = tl.load(cells, mask=live, other=0.0).to(tl.float32)
    inputs = (routed_ptr, ids_ptr, x_ptr, weight_ptr, addend_ptr)
    total = residual + _total(*inputs, t, column, live, width, K, IDENTITY, ADDEND)
    # The residual is rounded once, for the store; the norm reads it unrounded.
    tl.store(cells, total.to(residual_ptr.dtype.element_ty), mask=live)
    normed = total * tl.rsqrt(tl.sum(total * total, axis=0) / width + eps) * norm
    tl.store(out_ptr + t * width + column, normed.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize_on_alignment=["weight_ptr"])
def _add_identity_kernel(
    out_ptr,  # read, and written
    x_ptr,
    weight_ptr,
    width,
    out_stride,
    x_stride,
    BLOCK: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < width
    weight = tl.load(weight_ptr + t)
    x = tl.load(x_ptr + t * x_stride + column, mask=live, other=0.0).to(tl.float32)
    cells = out_ptr + t * out_stride + column
    out = tl.load(cells, mask=live, other=0.0).to(tl.float32)
    tl.store(cells, (out + weight * x).to(out_ptr.dtype.element_ty), mask=live)


def finalize(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    addend: torch.Tensor | None,
) -> torch.Tensor:
    tokens, _, width = routed.shape
    out = torch.empty((tokens, width), dtype=routed.dtype, device=routed.device)
    if tokens:
        block = min(triton.next_power_of_2(width), BLOCK)
        inputs, options = _inputs(out, routed, ids, x, weight, addend)
        _finalize_kernel[(tokens, triton.cdiv(width, block))](
            out, *inputs, BLOCK=block, num_warps=4, **options
        )
    return out


def finalize_norm(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    addend: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    tokens, _, width = routed.shape
    out = torch.empty((tokens, width), dtype=routed.dtype, device=routed.device)
    if tokens:
        block = triton.next_power_of_2(width)
        # 8 columns a thread, so that as many loads as possible of the 12 rows are in flight.
        warps = min(16, max(1, block // 256))
        inputs, options = _inputs(out, routed, ids, x, weight, addend)
        _finalize_norm_kernel[(tokens,)](
            out, residual, norm_weight, eps, *inputs, BLOCK=block, num_warps=warps, **options
        )
    return out


def add_identity_(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    tokens, width = out.shape
    if tokens:
        block = min(triton.next_power_of_2(width), BLOCK)
        # torch may give a single row any stride, and stride 1 would be a variant of its own.
        strides = (out.stride(0), x.stride(0)) if tokens > 1 else (width, width)
        _add_identity_kernel[(tokens, triton.cdiv(width, block))](
            out, x, weight.contiguous(), width, *strides, BLOCK=block, num_warps=4
        )
    return out


def _inputs(
    out: torch.Tensor,
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    addend: torch.Tensor | None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that `_finalize_kernel` and `_finalize_norm_kernel` share: those from `routed_ptr`
    to `width`, and the constants."""
    # A kernel needs a pointer for an input that is left out, which it does not read: out's.
    optional = (_dense(tensor, out) for tensor in (x, weight, addend))
    parts = {"K": routed.shape[1], "IDENTITY": x is not None, "ADDEND": addend is not None}
    arguments = routed.contiguous(), ids.contiguous(), *optional, routed.shape[2]
    return arguments, parts | pdl_options(routed)


def _dense(tensor: torch.Tensor | None, unused: torch.Tensor) -> torch.Tensor:
    return unused if tensor is None else tensor.contiguous()
