"""Routing over routed and identity experts, from hidden states to what the expert GEMMs take.

    logits = W x; p = softmax(logits); S = top-k of (p + bias); w_e = scale * p_e for e in S

Weights are not renormalised. Experts [0, routed) have weights; experts [routed, E) return their
input. Their slots get expert id -1, which the grouped GEMM skips, weight 0, and their weights are
summed per token. Under expert parallelism a rank names the experts that it holds, `(first, count)`,
by their place among these, and every other slot -1. Rows that fill up a CUDA graph's batch, by
their KV slot, go nowhere: ids -1, weights 0. Source: paper section 3 (zero-computation experts);
reference `LongcatFlashTopkRouter`.

Whatever the input, a row's ids are -1 or different experts of those held. A score that is NaN
counts as the lowest. A logit of NaN or +inf, or a row of -inf, makes every p of the row NaN: it
takes experts 0, 1, ..., and NaN weights keep the accident visible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.moe_router import reference
from longcat_kernels.moe_router.reference import Options

__all__ = ["Options", "Routing", "fuses", "route", "route_tokens"]


class Routing(NamedTuple):
    """weights [T, k] fp32, expert_ids [T, k] int32 (-1: identity, or another rank's), and
    identity_weight [T] fp32; weights and identity_weight are the same on every rank."""

    weights: torch.Tensor
    expert_ids: torch.Tensor
    identity_weight: torch.Tensor


def route(logits: torch.Tensor, bias: torch.Tensor, options: Options) -> Routing:
    """logits [T, E] fp32, bias [E] fp32.

    Ids equal the reference's unless two scores are within 1e-7 (among equal ones both take the
    lowest expert first); weights to 2e-6 relative plus 6e-7 (order of the softmax sum, the GPU's
    exp). ValueError if options.slots are not one a row.
    """
    _check(logits, options)
    if use_triton(logits):
        from longcat_kernels.moe_router import _triton

        return Routing(*_triton.route(logits, bias, options))
    return Routing(*reference.route(logits, bias, options))


def route_tokens(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, options: Options
) -> Routing:
    """x [T, D], weight [E, D] fp32, bias [E] fp32: the router's GEMM, then `route`.

    Where `fuses` says so, in two launches, with the same bits for a token in every batch of up to
    `_triton.FEW_TOKENS`, and in every larger one; else through a GEMM of torch. Logits have the
    precision of fp32 products and sums either way, 2e-6 of their spread: ids equal the reference's
    unless two scores are within 1e-6.
    """
    if not fuses(x, weight):
        return route(reference.logits(x, weight), bias, options)
    _check(x, options)
    from longcat_kernels.moe_router import _triton

    return Routing(*_triton.route_tokens(x, weight, bias, options))


def _check(rows: torch.Tensor, options: Options) -> None:
    slots = options.slots
    if slots is not None and slots.shape != rows.shape[:1]:
        raise ValueError(f"slots {tuple(slots.shape)}: expected one for each of {len(rows)} rows.")


def fuses(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `route_tokens` computes the logits itself: bf16 by fp32, on a GPU."""
    return use_triton(x) and (x.dtype, weight.dtype) == (torch.bfloat16, torch.float32)
