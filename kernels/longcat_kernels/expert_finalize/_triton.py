"""The final sum of a mixture of experts in Triton: one program per token and block of columns, or
per token where a norm follows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options

BLOCK = 1024  # columns: 8 a thread, 16-byte loads


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
    """Columns of token t's sum, fp32. In one order, whatever the block of columns."""
    total = tl.zeros(column.shape, dtype=tl.float32)
    for k in tl.static_range(K):
        there = tl.load(ids_ptr + t * K + k) >= 0
        row = routed_ptr + (t * K + k) * width
        total += tl.load(row + column, mask=live & there, other=0.0).to(tl.float32)
    if IDENTITY:
        x = tl.load(x_ptr + t * width + column, mask=live, other=0.0).to(tl.float32)
        total += tl.load(weight_ptr + t) * x
    if ADDEND:
        total += tl.load(addend_ptr + t * width + column, mask=live, other=0.0).to(tl.float32)
    return total


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
    norm = tl.load(norm_ptr + column, mask=live, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    cells = residual_ptr + t * width + column
    residual = tl.load(cells, mask=live, other=0.0).to(tl.float32)
    inputs = (routed_ptr, ids_ptr, x_ptr, weight_ptr, addend_ptr)
    total = residual + _total(*inputs, t, column, live, width, K, IDENTITY, ADDEND)
    tl.store(cells, total.to(residual_ptr.dtype.element_ty), mask=live)
    normed = total * tl.rsqrt(tl.sum(total * total, axis=0) / width + eps) * norm
    tl.store(out_ptr + t * width + column, normed.to(out_ptr.dtype.element_ty), mask=live)


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
        # 8 columns a thread: of 12 rows to add up, as many loads as can be are in flight.
        warps = min(16, max(1, block // 256))
        inputs, options = _inputs(out, routed, ids, x, weight, addend)
        _finalize_norm_kernel[(tokens,)](
            out, residual, norm_weight, eps, *inputs, BLOCK=block, num_warps=warps, **options
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
    """What both kernels take of a mixture: arguments up to the width, and constants. `out` stands
    in for what there is not."""
    optional = (_dense(tensor, out) for tensor in (x, weight, addend))
    parts = {"K": routed.shape[1], "IDENTITY": x is not None, "ADDEND": addend is not None}
    arguments = routed.contiguous(), ids.contiguous(), *optional, routed.shape[2]
    return arguments, parts | pdl_options(routed)


def _dense(tensor: torch.Tensor | None, unused: torch.Tensor) -> torch.Tensor:
    return unused if tensor is None else tensor.contiguous()
