"""Routing over routed and identity experts, from hidden states to what the expert GEMMs take.

    logits = W x; p = softmax(logits); S = top-k of (p + bias); w_e = scale * p_e for e in S

The k weights are not renormalised. Experts [0, routed) have weights of their own; experts
[routed, E) are identity experts, which return their input. A slot with an identity expert gets id
-1, which the grouped GEMM skips, and weight 0; the weights of all of them are summed per token.
Under expert parallelism a rank holds the experts `(first, count)`. Its ids are their places among
these, and every other slot gets id -1. A row that only fills up a CUDA graph's batch, which its KV
slot says, gets ids -1 and weights 0. Source: paper section 3 (zero-computation experts); reference
`LongcatFlashTopkRouter`.

Whatever the input is, the ids of a row that are not -1 are different experts of this rank. A score
that is NaN counts as the lowest. A logit of NaN or +inf, or a row of -inf, makes every p of the row
NaN: the row takes experts 0, 1, ..., and its NaN weights keep the accident visible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.moe_router import reference
from longcat_kernels.moe_router.reference import Options

__all__ = ["Options", "Routing", "route", "route_tokens", "supports"]


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
        from longcat_kernels.moe_router import launch

        return Routing(*launch.route(logits, bias, options))
    return Routing(*reference.route(logits, bias, options))


def route_tokens(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, options: Options
) -> Routing:
    """x [T, D], weight [E, D] fp32, bias [E] fp32: the router's GEMM, then `route`.

    Where `supports` is true these are two launches of ours; otherwise torch makes the GEMM. With
    ours a token has the same bits in every batch of up to `launch.FEW_TOKENS` tokens, and in every
    larger one. Either way logits have the precision of fp32 products and sums, 2e-6 of their
    spread: ids equal the reference's unless two scores are within 1e-6.
    """
    if not supports(x, weight):
        return route(reference.logits(x, weight), bias, options)
    _check(x, options)
    from longcat_kernels.moe_router import launch

    return Routing(*launch.route_tokens(x, weight, bias, options))


def _check(rows: torch.Tensor, options: Options) -> None:
    slots = options.slots
    if slots is not None and slots.shape != rows.shape[:1]:
        raise ValueError(f"slots {tuple(slots.shape)}: expected one for each of {len(rows)} rows.")


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether our kernels can compute the logits: bf16 by fp32, on a GPU."""
    return use_triton(x) and (x.dtype, weight.dtype) == (torch.bfloat16, torch.float32)
