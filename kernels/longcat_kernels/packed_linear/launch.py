"""Launches the projections from 4-bit weights."""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import pdl_options
from longcat_kernels.packed_linear import marlin
from longcat_kernels.packed_linear._triton import _packed_kernel
from longcat_kernels.packed_linear.configs import Config, fallback, find
from longcat_kernels.packed_linear.marlin import Packed
from longcat_kernels.small_linear.configs import Op
from longcat_kernels.small_linear.launch import _aligned


def launch(op: Op, x: torch.Tensor, weight: Packed, config: Config | None = None) -> torch.Tensor:
    """The public function called `op`. config: by default the table's, or the fallback's."""
    tokens, columns = x.shape
    rows, group = marlin.outputs(weight.words), columns // weight.scales.shape[0]
    n = rows // 2 if op == "swiglu_linear" else rows
    out = torch.empty((tokens, n), dtype=x.dtype, device=x.device)
    if not tokens:
        return out
    config = config or find(op, rows, columns, group, tokens) or fallback(group)
    x = _aligned(x).view(torch.int32)
    _packed_kernel[(n // config.block_n,)](
        x,
        weight.words,
        weight.scales.view(torch.int32),
        out,
        tokens,
        x.stride(0),
        n,
        K=columns,
        GROUP=group,
        SWIGLU=op == "swiglu_linear",
        LANES=config.block_n // 8,
        SLOTS=64 * config.warps // config.block_n,
        SPAN=config.span,
        AHEAD=config.ahead,
        TOKENS=1 if tokens == 1 else 2 if tokens == 2 else 4,
        num_warps=config.warps,
        **pdl_options(x),
    )
    return out
