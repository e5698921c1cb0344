"""Launches the small projections: which of the five kernels, with which arguments."""

from __future__ import annotations

from typing import Any

import torch
import triton

from longcat_kernels.dispatch import pdl_options
from longcat_kernels.small_linear import _triton, _triton_fp8
from longcat_kernels.small_linear._triton_fp8_few import _few_kernel
from longcat_kernels.small_linear.configs import Config, Op, fallback, find


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


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """x with rows that 16-byte loads can read: another alignment would be a variant of its own."""
    if x.shape[0] == 1:  # torch may give a single row any stride
        x = x.as_strided(x.shape, (x.shape[1], x.stride(1)))
    if x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)
