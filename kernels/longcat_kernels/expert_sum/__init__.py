"""The end of a mixture of experts: expert outputs, the identity part and an addend become one sum.

    finalize        out[t, :] = sum_{k: ids[t, k] >= 0} routed[t, k, :]
                                + weight[t] * x[t, :] + addend[t, :]
    finalize_norm   residual[t, :] += out[t, :]
                    y[t, :] = g * residual[t, :] / sqrt(mean(residual[t]^2) + eps)
    add_identity_   out[t, :] += weight[t] * x[t, :]

`finalize` takes each expert's output by itself, and `finalize_norm` goes on with the residual add
and the RMSNorm that follow. `add_identity_` adds the identity experts' part to a sum that another
kernel has made already. All sums are in fp32, and each result is rounded once to its dtype (the
norm reads the residual unrounded).

Implementations of the first two differ in the order of the sum, so by at most an ulp except where
terms cancel. `add_identity_`'s kernel may contract the product and the sum into one FMA: it is
within 1 ulp of the reference, except where the two cancel, and there within an fp32 rounding of the
product.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.expert_sum import reference

__all__ = ["add_identity_", "finalize", "finalize_norm"]


def finalize(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
) -> torch.Tensor:
    """routed: [T, K, D], router weights included, as the second expert GEMM writes it. ids: [T, K]
    int32; a row of `routed` whose id is negative is not read, whatever it holds. x [T, D] and
    weight [T] fp32: both, or neither on ranks that do not add the identity part. addend: [T, D] or
    None. routed, x, addend and the result [T, D] have one dtype.

    ValueError for one of x and weight without the other.
    """
    _check(x, weight)
    if use_triton(routed):
        from longcat_kernels.expert_sum import _triton

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
    """y [T, D]; residual [T, D] is changed in place. norm_weight: g [D]. All of routed's dtype.

    ValueError as `finalize`, and for a residual that is not [T, D] and contiguous.
    """
    _check(x, weight)
    if residual.shape != (routed.shape[0], routed.shape[2]) or not residual.is_contiguous():
        raise ValueError(
            f"residual {tuple(residual.shape)} of strides {residual.stride()} for expert outputs "
            f"{tuple(routed.shape)}: expected contiguous rows, one per token."
        )
    args = routed, ids, x, weight, addend, residual, norm_weight, eps
    if use_triton(routed):
        from longcat_kernels.expert_sum import _triton

        return _triton.finalize_norm(*args)
    return reference.finalize_norm(*args)


def add_identity_(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In place; returns out. out, x: [T, D] of one dtype, rows contiguous; weight: [T] fp32."""
    if use_triton(out):
        from longcat_kernels.expert_sum import _triton

        return _triton.add_identity_(out, x, weight)
    return reference.add_identity_(out, x, weight)


def _check(x: torch.Tensor | None, weight: torch.Tensor | None) -> None:
    if (x is None) != (weight is None):
        raise ValueError(
            "finalize got one of x and weight; expected both or neither. Pass the other too."
        )
