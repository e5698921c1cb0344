"""Routing over routed and identity experts, from logits to what the expert GEMMs take.

    p = softmax(logits); S = top-k of (p + bias); w_e = scale * p_e for e in S   (not renormalised)

Experts [0, routed) have weights; experts [routed, E) return their input. Their slots get expert id
-1, which the grouped GEMM skips, weight 0, and their weights are summed per token. Source: paper
section 3 (zero-computation experts); reference `LongcatFlashTopkRouter`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.moe_router import reference


class Routing(NamedTuple):
    """weights [T, k] fp32, expert_ids [T, k] int32 (-1: identity), identity_weight [T] fp32."""

    weights: torch.Tensor
    expert_ids: torch.Tensor
    identity_weight: torch.Tensor


def route(
    logits: torch.Tensor, bias: torch.Tensor, *, top_k: int, routed: int, scale: float
) -> Routing:
    """logits [T, E] fp32, bias [E] fp32. Ids equal the reference's unless two scores are within
    1e-7 (among equal ones both take the lowest expert first); weights to 2e-6 relative plus 6e-7
    (order of the softmax sum, the GPU's exp)."""
    if use_triton(logits):
        from longcat_kernels.moe_router import _triton

        return Routing(*_triton.route(logits, bias, top_k, routed, scale))
    return Routing(*reference.route(logits, bias, top_k, routed, scale))
