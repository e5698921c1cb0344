"""Launches of routing: which kernels, with which tiles. The kernels are in `_triton.py`."""

from __future__ import annotations

import torch
import triton

from longcat_kernels.dispatch import pdl_options
from longcat_kernels.moe_router._triton import _logits_kernel, _many_logits_kernel, _route_kernel
from longcat_kernels.moe_router.reference import Options

# A tile of `_logits_kernel` is one warpgroup's wgmma with its parts in registers: 64 experts, since
# with fewer each warp repeats the others' products and spills, and 128 columns, so that every SM of
# 132 has a tile.
BLOCK_E, BLOCK_K = 64, 128
# Its tokens: at least wgmma's 8, at most 64. With more the weight is read again, from L2.
LEAST_ROWS, MOST_ROWS = 8, 64
# Tokens up to which 24 partial sums a token cost no more than a GEMM that keeps few SMs busy. The
# whole routing, with parts and with a GEMM, takes 47 and 52 us at 1,024 tokens, 71 and 56 at 1,536,
# 347 and 175 at 8,192 on an H200.
FEW_TOKENS = 1024
# The tile of `_many_logits_kernel`: of 13 that ran on an H200 none is faster from 1,536 tokens on.
TILE = {"BLOCK_E": 64, "BLOCK_T": 128, "BLOCK_K": 64, "STAGES": 3}
# Experts of a warp of `_route_kernel` behind `_logits_kernel`: 16 bytes a lane and load.
GROUP = 128
# Registers of a thread there. Where ptxas chooses, it keeps 6 of the 24 loads in flight, so that
# the program waits for L2 four times.
REGISTERS = 128


def route(
    logits: torch.Tensor, bias: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return route_sum(logits.contiguous()[None], bias, options)


def route_tokens(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = few_logits if len(x) <= FEW_TOKENS else many_logits
    return route_sum(logits(x.contiguous(), weight.contiguous()), bias, options)


def few_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[splits, T, E]: a partial sum of the logits for each BLOCK_K columns of the weight."""
    (tokens, width), experts = x.shape, weight.shape[0]
    splits = triton.cdiv(width, BLOCK_K)
    parts = torch.empty((splits, tokens, experts), dtype=torch.float32, device=x.device)
    rows = min(max(triton.next_power_of_2(tokens), LEAST_ROWS), MOST_ROWS)
    if tokens:
        _logits_kernel[(triton.cdiv(experts, BLOCK_E), splits, triton.cdiv(tokens, rows))](
            x,
            weight,
            parts,
            tokens,
            width,
            experts,
            BLOCK_T=rows,
            BLOCK_E=BLOCK_E,
            BLOCK_K=BLOCK_K,
            num_warps=4,
            **pdl_options(x),
        )
    return parts


def many_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[1, T, E], for any T."""
    (tokens, width), experts = x.shape, weight.shape[0]
    logits = torch.empty((1, tokens, experts), dtype=torch.float32, device=x.device)
    if tokens:
        grid = triton.cdiv(experts, TILE["BLOCK_E"]), triton.cdiv(tokens, TILE["BLOCK_T"])
        _many_logits_kernel[grid](
            x, weight, logits, tokens, width, experts, **TILE, num_warps=4, **pdl_options(x)
        )
    return logits


def route_sum(
    parts: torch.Tensor, bias: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    splits, tokens, experts = parts.shape
    top_k, slots = options.top_k, options.slots
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=parts.device)
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device=parts.device)
    identity = torch.empty(tokens, dtype=torch.float32, device=parts.device)
    # Whole logits (one split) come from large batches too, where the time of thousands of tokens
    # counts more than that of one: a single warp a token has no lists to merge.
    groups = triton.next_power_of_2(triton.cdiv(experts, GROUP)) if splits > 1 else 1
    if tokens:
        _route_kernel[(tokens,)](
            parts,
            bias,
            weights,
            ids,
            identity,
            tokens,
            experts,
            bias if slots is None else slots,
            options.routed,
            *options.named,
            options.scale,
            PADDED=slots is not None,
            SPLITS=splits,
            K=top_k,
            GROUPS=groups,
            WIDTH=triton.next_power_of_2(triton.cdiv(experts, groups)),
            SLOTS=triton.next_power_of_2(top_k),
            num_warps=groups,
            maxnreg=REGISTERS if splits > 1 else None,
            **pdl_options(parts),
        )
    return weights, ids, identity
