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

Inputs that are quantised already (a pair, `fp8_layout`) have functions of their own:

    pair_linear(p, W) = p W^T                          bf16 [T, N]
    pair_swiglu_bf16(p, W) = silu(p Wg^T) * (p Wu^T)   bf16 [T, N / 2]
    pair_swiglu(p, W) = quantise(pair_swiglu_bf16(p, W))            a pair [T, N / 2]

Tensor cores multiply FP8 by FP8 there, as in DeepGEMM. Hopper's add up the 128 products of a block
with 14 bits of mantissa, so a result is up to 2^-13 of the sum of absolute products from the exact
value.

On CUDA with programmatic dependent launch the weights are read before the kernel ahead of this one
has finished, so that kernel must not be the one that writes them.

The functions also compute shapes and numbers of tokens for which a library call is faster:
`is_faster` says which those are.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.fp8_layout import FP8, Pair
from longcat_kernels.small_linear import reference
from longcat_kernels.small_linear.configs import BLOCK, MOST_TOKENS, Op, PairOp, find

__all__ = [
    "BLOCK",
    "FP8",
    "MOST_TOKENS",
    "is_faster",
    "linear",
    "pair_linear",
    "pair_swiglu",
    "pair_swiglu_bf16",
    "swiglu_linear",
]


def is_faster(op: Op | PairOp, weight: torch.Tensor, tokens: int) -> bool:
    """Whether the function called `op` beat the library (cuBLAS; DeepGEMM for FP8) for this weight
    [N, K] when tuned. An entry for pairs also beat the function that takes bf16."""
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


def pair_linear(pair: Pair, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """q [T, K] with scales [T, K / 128], weight [N, K] -> bf16 [T, N]. ValueError for other shapes
    or types."""
    _check_pair(pair, weight, scales, BLOCK)
    if not use_triton(weight):
        return reference.pair_linear(pair, weight, scales)
    from longcat_kernels.small_linear import launch

    return launch.launch_pair("pair_linear", pair, weight, scales)[0]


def pair_swiglu(pair: Pair, weight: torch.Tensor, scales: torch.Tensor) -> Pair:
    """q [T, K] with scales [T, K / 128], weight [2F, K] -> the same of [T, F]. ValueError for other
    shapes or types."""
    _check_pair(pair, weight, scales, 2 * BLOCK)
    if not use_triton(weight):
        return reference.pair_swiglu(pair, weight, scales)
    from longcat_kernels.small_linear import launch

    q, q_scales = launch.launch_pair("pair_swiglu", pair, weight, scales)
    assert q_scales is not None
    return q, q_scales


def pair_swiglu_bf16(pair: Pair, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`pair_swiglu` for a reader that takes bf16: q [T, K] with scales [T, K / 128], weight [2F, K]
    -> bf16 [T, F]. ValueError for other shapes or types."""
    _check_pair(pair, weight, scales, 2 * BLOCK)
    if not use_triton(weight):
        return reference.pair_swiglu_bf16(pair, weight, scales)
    from longcat_kernels.small_linear import launch

    return launch.launch_pair("pair_swiglu", pair, weight, scales, quantised=False)[0]


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


def _check_pair(pair: Pair, weight: torch.Tensor, scales: torch.Tensor, rows: int) -> None:
    q, q_scales = pair
    tokens = q.shape[0]
    if tokens > MOST_TOKENS or q.shape[1:] != weight.shape[1:]:
        raise ValueError(
            f"q {tuple(q.shape)} and weight {tuple(weight.shape)}: expected [T, K] and [N, K], and "
            f"at most {MOST_TOKENS} tokens. Use DeepGEMM for more."
        )
    if q.dtype != FP8 or weight.dtype != FP8 or not (q.is_contiguous() and weight.is_contiguous()):
        raise ValueError(f"q {q.dtype}, weight {weight.dtype}: expected contiguous {FP8}.")
    by_group = q_scales.stride(0) == 1 and q_scales.stride(1) >= tokens
    if tuple(q_scales.shape) != (tokens, weight.shape[1] // BLOCK) or not (by_group or tokens < 2):
        raise ValueError(
            f"scales {tuple(q_scales.shape)} of strides {q_scales.stride()}, q {tuple(q.shape)}: "
            f"expected one for each {BLOCK} columns, a row for each group (`scale_rows`)."
        )
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
