"""Sums a token's expert outputs, its identity part and an addend, in one pass.

    out[t, :] = sum_{k: ids[t, k] >= 0} routed[t, k, :] + weight[t] * x[t, :] + addend[t, :]

With the residual add and the RMSNorm that follow, `finalize_norm`:

    residual[t, :] += out[t, :];    y[t, :] = g * residual[t, :] / sqrt(mean(residual[t]^2) + eps)

routed: [T, K, D], router weights included, as the second expert GEMM writes it; rows whose id is
negative are not read, whatever they hold. ids: [T, K] int32. x, weight: [T, D] and [T] fp32, both
or neither (ranks that do not add the identity part). addend: [T, D] or None. routed, x, addend and
the result are of one dtype, residual [T, D] and g [D] too. Sums are in fp32 and are rounded once
(for the residual; the norm reads them unrounded); the implementations differ in the order of the
sum, so by at most an ulp except where terms cancel.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.expert_finalize import reference

__all__ = ["finalize", "finalize_norm"]


def finalize(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
) -> torch.Tensor:
    """ValueError for one of x and weight without the other."""
    _check(x, weight)
    if use_triton(routed):
        from longcat_kernels.expert_finalize import _triton

        return _triton.finalize(routed, ids, x, weight, addend)
    return reference.finalize(routed, ids, x, weight, addend)


def finalize_norm(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
    *,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """y [T, D]; residual is changed in place. ValueError as `finalize`, and for a residual that is
    not [T, D] and contiguous."""
    _check(x, weight)
    if residual.shape != (routed.shape[0], routed.shape[2]) or not residual.is_contiguous():
        raise ValueError(
            f"residual {tuple(residual.shape)} of strides {residual.stride()} for expert outputs "
            f"{tuple(routed.shape)}: expected contiguous rows, one per token."
        )
    args = routed, ids, x, weight, addend, residual, norm_weight, eps
    if use_triton(routed):
        from longcat_kernels.expert_finalize import _triton

        return _triton.finalize_norm(*args)
    return reference.finalize_norm(*args)


def _check(x: torch.Tensor | None, weight: torch.Tensor | None) -> None:
    if (x is None) != (weight is None):
        raise ValueError(
            "finalize got one of x and weight; expected both or neither. Pass the other too."
        )
