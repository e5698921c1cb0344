"""Sums a token's expert outputs, its identity part and an addend, in one pass.

    out[t, :] = sum_{k: ids[t, k] >= 0} routed[t, k, :] + weight[t] * x[t, :] + addend[t, :]

routed: [T, K, D], router weights included, as the second expert GEMM writes it; rows whose id is
negative are not read, whatever they hold. ids: [T, K] int32. x, weight: [T, D] and [T] fp32, both
or neither (ranks that do not add the identity part). addend: [T, D] or None. routed, x, addend and
the result are of one dtype. Sums are in fp32 and are rounded once; the implementations differ in
the order of the sum, so by at most an ulp except where terms cancel.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.expert_finalize import reference


def finalize(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
) -> torch.Tensor:
    """ValueError for one of x and weight without the other."""
    if (x is None) != (weight is None):
        raise ValueError(
            "finalize got one of x and weight; expected both or neither. Pass the other too."
        )
    if use_triton(routed):
        from longcat_kernels.expert_finalize import _triton

        return _triton.finalize(routed, ids, x, weight, addend)
    return reference.finalize(routed, ids, x, weight, addend)
