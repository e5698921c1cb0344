"""Routing in Triton: one program per token, k rounds of argmax over the logits in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _route_kernel(
    logits_ptr,
    bias_ptr,
    weights_ptr,
    ids_ptr,
    identity_ptr,
    experts,
    routed,
    scale,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    live = column < experts
    logits = tl.load(logits_ptr + t * experts + column, mask=live, other=-float("inf"))
    exponent = tl.exp(logits - tl.max(logits, axis=0))
    probability = exponent / tl.sum(exponent, axis=0)
    score = probability + tl.load(bias_ptr + column, mask=live, other=0.0)
    score = tl.where(live, score, -float("inf"))
    identity = 0.0
    for k in tl.static_range(K):
        expert = tl.argmax(score, axis=0, tie_break_left=True)
        weight = tl.sum(tl.where(column == expert, probability, 0.0), axis=0) * scale
        score = tl.where(column == expert, -float("inf"), score)
        is_identity = expert >= routed
        identity += tl.where(is_identity, weight, 0.0)
        tl.store(weights_ptr + t * K + k, tl.where(is_identity, 0.0, weight))
        tl.store(ids_ptr + t * K + k, tl.where(is_identity, -1, expert).to(tl.int32))
    tl.store(identity_ptr + t, identity)


def route(
    logits: torch.Tensor, bias: torch.Tensor, top_k: int, routed: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, experts = logits.shape
    logits = logits.contiguous()
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device=logits.device)
    identity = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    if tokens:
        _route_kernel[(tokens,)](
            logits,
            bias,
            weights,
            ids,
            identity,
            experts,
            routed,
            scale,
            K=top_k,
            BLOCK=triton.next_power_of_2(experts),
            num_warps=2,
        )
    return weights, ids, identity
