"""Launches the small projections: which of the six kernels, with which arguments."""

from __future__ import annotations

from typing import Any

import torch
import triton

from longcat_kernels.dispatch import pdl_options
from longcat_kernels.fp8_layout import FP8, Pair, scale_rows, scales_of
from longcat_kernels.small_linear import _triton, _triton_fp8
from longcat_kernels.small_linear._triton_fp8_few import _few_kernel
from longcat_kernels.small_linear._triton_fp8_pair import _pair_kernel
from longcat_kernels.small_linear.configs import (
    Config,
    Op,
    PairOp,
    fallback,
    find,
    pair_fallback,
)


def launch(
    op: Op,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """The public function called `op`. config: by default the table's, or the fallback's."""
    tokens, columns = x.shape
    swiglu, fp8 = op == "swiglu_linear", scales is not None
    n = weight.shape[0] // 2 if swiglu else weight.shape[0]
    out = torch.empty((tokens, n), dtype=x.dtype, device=x.device)
    if not tokens or not n:
        return out
    config = (
        config or find(op, weight.shape[0], columns, tokens, fp8) or fallback(columns, tokens, fp8)
    )
    x = _aligned(x)
    weights = (weight,) if scales is None else (weight, scales.contiguous())
    constants: dict[str, Any] = {
        "K": columns,
        "SWIGLU": swiglu,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "AHEAD": config.ahead,
        "num_warps": config.warps,
        **pdl_options(x),
    }
    grid = (triton.cdiv(n, config.block_n),)
    kernels = _triton_fp8 if fp8 else _triton
    if config.program == "gemv":
        kernels._gemv_kernel[grid](x, *weights, out, n, **constants)
        return out
    arguments = x, *weights, out, tokens, x.stride(0), n
    if config.program == "few":
        _few_kernel[grid](*arguments, TOKENS=2 if tokens <= 2 else 4, **constants)
    else:
        constants |= {"STAGES": config.stages, "TOKENS": 16 if tokens <= 16 else 32}
        kernels._mma_kernel[grid](*arguments, **constants)
    return out


def launch_pair(
    op: PairOp,
    pair: Pair,
    weight: torch.Tensor,
    scales: torch.Tensor,
    config: Config | None = None,
    *,
    quantised: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The public function called `op`: its result, and the result's scales. Only SwiGLU's result is
    quantised, unless `quantised` is False."""
    q, q_scales = pair
    tokens, columns = q.shape
    swiglu = op == "pair_swiglu"
    quantised = quantised and swiglu
    n = weight.shape[0] // 2 if swiglu else weight.shape[0]
    out = torch.empty((tokens, n), dtype=FP8 if quantised else torch.bfloat16, device=q.device)
    out_scales = scale_rows(tokens, n, q.device) if quantised else None
    if tokens and n:
        config = config or find(op, weight.shape[0], columns, tokens, True) or pair_fallback(op)
        _pair_kernel[(triton.cdiv(n, config.block_n),)](
            q,
            q_scales,
            weight,
            scales.contiguous(),
            out,
            q_scales if out_scales is None else out_scales,
            tokens,
            q_scales.stride(1),
            n,
            K=columns,
            SWIGLU=swiglu,
            QUANTISED=quantised,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            PARTS=config.ahead,
            STAGES=config.stages,
            TOKENS=max(8, triton.next_power_of_2(tokens)),
            num_warps=config.warps,
            **pdl_options(q),
        )
    return out, None if out_scales is None else scales_of(out_scales, tokens)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """x with rows that 16-byte loads can read: another alignment would be a variant of its own."""
    if x.shape[0] == 1:  # torch may give a single row any stride
        x = x.as_strided(x.shape, (x.shape[1], x.stride(1)))
    if x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)
