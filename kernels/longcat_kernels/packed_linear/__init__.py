"""Dense projections of at most 4 tokens from 4-bit weights, as Marlin holds them.

    linear(x, W)        = x W^T
    swiglu_linear(x, W) = silu(x Wg^T) * (x Wu^T)      W = [Wg; Wu]: gate rows, then up rows

x: [T, K] bf16, T <= MOST_TOKENS; rows may be strided. W: [N, K], symmetric in 4 bits, with a bf16
scale for each 32, 64 or 128 inputs, in the order that SGLang gives it for its Marlin kernels
(`marlin.py`): Marlin reads the same copy of the weights for more tokens. K is a multiple
of 128, N of 64, and of 128 for SwiGLU; K has at least two groups. Returns bf16 [T, N], or [T, N /
2] for SwiGLU. Products, sums and silu are fp32, and each result is rounded to bf16 once. Marlin
rounds each weight to bf16, and SGLang's SwiGLU also rounds gate and up.

On CUDA with programmatic dependent launch the weights are read before the kernel ahead of this one
has finished, so that kernel must not be the one that writes them.

The functions also compute shapes and numbers of tokens for which Marlin is faster: `is_faster` says
which those are.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import is_hopper, use_triton
from longcat_kernels.packed_linear import marlin, reference
from longcat_kernels.packed_linear.configs import GROUPS, MOST_TOKENS, find
from longcat_kernels.packed_linear.marlin import Packed
from longcat_kernels.small_linear.configs import Op

__all__ = ["MOST_TOKENS", "Packed", "is_faster", "linear", "swiglu_linear"]

_INPUTS = 128  # K is a multiple of it


def is_faster(op: Op, weight: Packed, tokens: int) -> bool:
    """Whether the function called `op` beat Marlin for this weight when tuned, on a Hopper GPU."""
    rows, columns = marlin.outputs(weight.words), marlin.inputs(weight.words)
    return (
        is_hopper(weight.words)
        and find(op, rows, columns, columns // weight.scales.shape[0], tokens) is not None
    )


def linear(x: torch.Tensor, weight: Packed) -> torch.Tensor:
    """x [T, K], weight [N, K] -> [T, N]. ValueError for other shapes or types."""
    return _run("linear", x, weight)


def swiglu_linear(x: torch.Tensor, weight: Packed) -> torch.Tensor:
    """x [T, K], weight [2F, K] -> [T, F]. ValueError for other shapes or types."""
    if marlin.outputs(weight.words) % (2 * marlin.TILE_N):
        raise ValueError(
            f"{marlin.outputs(weight.words)} rows of weights: expected a multiple of "
            f"{2 * marlin.TILE_N}, as many up as gate rows."
        )
    return _run("swiglu_linear", x, weight)


def _run(op: Op, x: torch.Tensor, weight: Packed) -> torch.Tensor:
    _check(x, weight)
    if use_triton(x):
        from longcat_kernels.packed_linear import launch

        return launch.launch(op, x, weight)
    return reference.OPS[op](x, weight)


def _check(x: torch.Tensor, weight: Packed) -> None:
    words, scales = weight
    _check_weight(words, scales)
    if x.ndim != 2 or x.shape[1] != marlin.inputs(words) or x.dtype != torch.bfloat16:
        raise ValueError(
            f"x {x.dtype} {tuple(x.shape)}: expected bf16 [T, {marlin.inputs(words)}]."
        )
    if x.shape[0] > MOST_TOKENS:
        raise ValueError(
            f"{x.shape[0]} tokens: expected at most {MOST_TOKENS}. Use Marlin for more."
        )


def _check_weight(words: torch.Tensor, scales: torch.Tensor) -> None:
    kinds = words.dtype == torch.int32 and scales.dtype == torch.bfloat16
    if not kinds or not (words.is_contiguous() and scales.is_contiguous()):
        raise ValueError(
            f"words {words.dtype}, scales {scales.dtype}, strides {words.stride()} and "
            f"{scales.stride()}: expected contiguous int32 and bf16."
        )
    if words.ndim != 2 or scales.ndim != 2 or not scales.shape[0]:
        raise ValueError(f"words {tuple(words.shape)}, scales {tuple(scales.shape)}: expected 2-D.")
    rows, columns = marlin.outputs(words), marlin.inputs(words)
    group = columns // scales.shape[0]
    whole = columns % _INPUTS == 0 and rows % marlin.TILE_N == 0 and words.shape[1] == 2 * rows
    grouped = group in GROUPS and group < columns and scales.shape == (columns // group, rows)
    if not whole or not grouped:
        raise ValueError(
            f"words {tuple(words.shape)}, scales {tuple(scales.shape)}: expected a weight [N, K] "
            f"with K a multiple of {_INPUTS}, N of {marlin.TILE_N}, and scales [K / group, N] of "
            f"two or more groups of {GROUPS} inputs."
        )
