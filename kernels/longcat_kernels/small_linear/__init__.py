"""Dense projections of at most 32 tokens, where reading the weights takes all the time.

    linear(x, W)        = x W^T
    swiglu_linear(x, W) = silu(x Wg^T) * (x Wu^T)      W = [Wg; Wu]: gate rows, then up rows

x: [T, K] bf16, T <= MOST_TOKENS; rows may be strided. W: [N, K] bf16, contiguous, or block FP8:

    W[n, k] = w[n, k] * scales[n // 128, k // 128]

with w float8_e4m3fn and scales [ceil(N / 128), K / 128] fp32; K, and N / 2 for SwiGLU, are
multiples of 128. Activations are never quantised. Returns bf16 [T, N], or [T, N / 2] for SwiGLU.
Products, sums and silu are fp32, and each result is rounded to bf16 once: it is half an ulp from
the exact value, plus what the order of K fp32 sums changes (2^-22 of the sum of absolute products).
SGLang's path also rounds gate and up, up to 3 ulp from this; in block FP8 it rounds x to FP8 too.

On CUDA with programmatic dependent launch the weights are read before the kernel ahead of this one
has finished, so that kernel must not be the one that writes them.

The functions also compute shapes and numbers of tokens for which a library call is faster:
`is_faster` says which those are.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.small_linear import reference
from longcat_kernels.small_linear.configs import BLOCK, MOST_TOKENS, Op, find

FP8 = torch.float8_e4m3fn

__all__ = ["BLOCK", "FP8", "MOST_TOKENS", "is_faster", "linear", "swiglu_linear"]


def is_faster(op: Op, weight: torch.Tensor, tokens: int) -> bool:
    """Whether `op` ("linear" or "swiglu_linear") beat the library (cuBLAS; DeepGEMM for FP8) for
    this weight [N, K] when tuned."""
    return find(op, weight.shape[0], weight.shape[1], tokens, weight.dtype == FP8) is not None


def linear(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, K], weight [N, K] -> [T, N]. ValueError for other shapes or types."""
    _check(x, weight, scales, BLOCK)
    return _run("linear", x, weight, scales)


def swiglu_linear(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, K], weight [2F, K] -> [T, F]. ValueError for other shapes or types."""
    if weight.shape[0] % 2:
        raise ValueError(f"{weight.shape[0]} rows of weights: expected as many up as gate rows.")
    _check(x, weight, scales, 2 * BLOCK)
    return _run("swiglu_linear", x, weight, scales)


def _run(
    op: Op, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None
) -> torch.Tensor:
    if use_triton(x):
        from longcat_kernels.small_linear import launch

        return launch.launch(op, x, weight, scales)
    return reference.OPS[op](x, weight, scales)


def _check(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None, rows: int) -> None:
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)}: expected [T, K] and [N, K]."
        )
    if x.shape[0] > MOST_TOKENS:
        raise ValueError(
            f"{x.shape[0]} tokens: expected at most {MOST_TOKENS}. Use torch's linear for more."
        )
    kind = torch.bfloat16 if scales is None else FP8
    if x.dtype != torch.bfloat16 or weight.dtype != kind or not weight.is_contiguous():
        raise ValueError(
            f"x {x.dtype}, weight {weight.dtype} with strides {weight.stride()}: expected bf16 and "
            f"a contiguous {kind} weight. Use torch's linear for others."
        )
    if scales is not None:
        _check_scales(weight, scales, rows)


def _check_scales(weight: torch.Tensor, scales: torch.Tensor, rows: int) -> None:
    """rows: what the weight's rows must be a multiple of if they are halves (SwiGLU)."""
    n, k = weight.shape
    wanted = -(-n // BLOCK), k // BLOCK
    whole = k % BLOCK == 0 and (rows == BLOCK or n % rows == 0)
    if not whole or tuple(scales.shape) != wanted or scales.dtype != torch.float32:
        raise ValueError(
            f"weight {tuple(weight.shape)} with scales {scales.dtype} {tuple(scales.shape)}: "
            f"expected fp32 {wanted}, columns that are a multiple of {BLOCK}, and for SwiGLU rows "
            f"that are a multiple of {2 * BLOCK}."
        )
