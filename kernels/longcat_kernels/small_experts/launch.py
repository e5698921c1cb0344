"""Launches the mixture of few tokens."""

from __future__ import annotations

from typing import Any

import torch
import triton

from longcat_kernels.dispatch import pdl_options
from longcat_kernels.small_experts._triton import _down_kernel, _gate_up_kernel
from longcat_kernels.small_experts.configs import MOST_TOKENS, Config, fallback, find
from longcat_kernels.small_experts.reference import Weights


def experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    factors: torch.Tensor,
    weights: Weights,
    identity: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """y [T, D]: both launches. config: by default the table's, or the fallback's."""
    if not len(x):
        return torch.empty_like(x)
    config = config or _config(weights, len(x))
    x, ids, factors = x.contiguous(), ids.contiguous(), factors.contiguous()
    shared = shared_options(x, ids, weights)
    hidden = gate_up(x, ids, weights, config, shared)
    return down(hidden, ids, factors, weights, (x, identity), config, shared)


def shared_options(x: torch.Tensor, ids: torch.Tensor, weights: Weights) -> dict[str, Any]:
    """Constants of both launches."""
    scaled = weights.gate_up_scales is not None
    return {"TOP_K": ids.shape[1], "SCALED": scaled, **pdl_options(x)}


def _config(weights: Weights, tokens: int) -> Config:
    _, rows, columns = weights.down.shape
    fp8 = weights.down_scales is not None
    return find(columns, rows, min(tokens, MOST_TOKENS), fp8) or fallback(fp8)


def gate_up(
    x: torch.Tensor, ids: torch.Tensor, weights: Weights, config: Config, shared: dict[str, Any]
) -> torch.Tensor:
    width = weights.gate_up.shape[1] // 2
    hidden = torch.empty((*ids.shape, width), dtype=x.dtype, device=x.device)
    _gate_up_kernel[(ids.numel(), width // config.block_n)](
        x,
        ids,
        weights.gate_up,
        _or(weights.gate_up_scales, x),
        hidden,
        N=width,
        K=x.shape[1],
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        AHEAD=config.ahead,
        num_warps=config.warps,
        **shared,
    )
    return hidden


def down(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    factors: torch.Tensor,
    weights: Weights,
    identity: tuple[torch.Tensor, torch.Tensor | None],
    config: Config,
    shared: dict[str, Any],
) -> torch.Tensor:
    x, weight = identity
    out = torch.empty_like(x)
    columns = hidden.shape[-1]
    _down_kernel[(len(x), x.shape[1] // config.down_n)](
        hidden,
        ids,
        factors,
        weights.down,
        _or(weights.down_scales, factors),
        x,
        _or(weight, factors),
        out,
        N=x.shape[1],
        K=columns,
        GROUPS=triton.next_power_of_2(columns // 128),
        IDENTITY=weight is not None,
        BLOCK_N=config.down_n,
        AHEAD=config.down_ahead,
        num_warps=config.down_warps,
        **shared,
    )
    return out


def _or(tensor: torch.Tensor | None, unused: torch.Tensor) -> torch.Tensor:
    """A kernel needs a pointer for an input that it does not read."""
    return unused if tensor is None else tensor
