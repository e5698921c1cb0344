"""Adds the identity experts' part to the routed part, in place.

    out[t, :] += weight[t] * x[t, :]      in fp32, rounded once to out's dtype

out, x: [T, D] of one dtype, rows contiguous; weight: [T] fp32, contiguous. The kernel may contract
the product and the sum into one FMA, so it is within 1 ulp of the reference, except where the two
cancel: there within an fp32 rounding of the product.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.identity_experts import reference


def add_identity_(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if use_triton(out):
        from longcat_kernels.identity_experts import _triton

        return _triton.add_identity_(out, x, weight)
    return reference.add_identity_(out, x, weight)
