"""Dense projections of at most 32 tokens, where reading the weights takes all the time.

    linear(x, W)        = x W^T
    swiglu_linear(x, W) = silu(x Wg^T) * (x Wu^T)      W = [Wg; Wu]: gate rows, then up rows

x: [T, K] bf16, T <= MOST_TOKENS; rows may be strided. W: [N, K] bf16, contiguous. Returns bf16
[T, N], or [T, N / 2] for SwiGLU. Products, sums and silu are fp32, and each result is rounded to
bf16 once: it is half an ulp from the exact value, plus what the order of K fp32 sums changes (2^-22
of the sum of absolute products). SGLang's path also rounds gate and up: up to 3 ulp from this.

On CUDA with programmatic dependent launch the weights are read before the kernel ahead of this one
has finished, so that kernel must not be the one that writes them.

The functions also compute shapes and numbers of tokens for which a library call is faster:
`is_faster` says which those are.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.small_linear import reference
from longcat_kernels.small_linear.configs import MOST_TOKENS, Op, find

__all__ = ["MOST_TOKENS", "is_faster", "linear", "swiglu_linear"]


def is_faster(op: Op, weight: torch.Tensor, tokens: int) -> bool:
    """Whether `op` ("linear" or "swiglu_linear") beat cuBLAS for this weight [N, K] when tuned."""
    return find(op, weight.shape[0], weight.shape[1], tokens) is not None


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, K], weight [N, K] -> [T, N]. ValueError for other shapes or types."""
    _check(x, weight)
    if use_triton(x):
        from longcat_kernels.small_linear import _triton

        return _triton.launch("linear", x, weight)
    return reference.linear(x, weight)


def swiglu_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, K], weight [2F, K] -> [T, F]. ValueError for other shapes or types."""
    _check(x, weight)
    if weight.shape[0] % 2:
        raise ValueError(f"{weight.shape[0]} rows of weights: expected as many up as gate rows.")
    if use_triton(x):
        from longcat_kernels.small_linear import _triton

        return _triton.launch("swiglu_linear", x, weight)
    return reference.swiglu_linear(x, weight)


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)}: expected [T, K] and [N, K]."
        )
    if x.shape[0] > MOST_TOKENS:
        raise ValueError(
            f"{x.shape[0]} tokens: expected at most {MOST_TOKENS}. Use torch's linear for more."
        )
    if x.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16 or not weight.is_contiguous():
        raise ValueError(
            f"x {x.dtype}, weight {weight.dtype} with strides {weight.stride()}: expected bf16 and "
            "a contiguous weight. Use torch's linear for others."
        )
