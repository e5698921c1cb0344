"""A mixture of experts for few tokens, where reading the experts' weights takes all the time.

    h[t, k] = silu(W1[e] x[t]) * (W3[e] x[t])                        e = ids[t, k]
    y[t]    = sum_{k: e >= 0} factors[t, k] W2[e] h[t, k] + identity[t] x[t]

Two launches: the first rounds h to bf16, the second y. All products and sums are fp32, and
activations are not quantised. In block FP8 a weight is its e4m3 value times the scale of its block
of 128 x 128. A result is half an ulp from the exact value, plus half an ulp of each h, plus the
order of the fp32 sums. SGLang's grouped GEMM makes a list of tokens by expert, quantises x and h
(block FP8), and rounds gate, up and each slot: up to some ulp from this.

Each slot reads its expert's weights, so the cost grows with slots and not with different experts:
`is_faster` says up to how many tokens this beats SGLang's grouped GEMM. The kernels read ids, which
the router wrote, before the launch ahead of the second has ended: call `experts` behind the router.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.small_experts import reference
from longcat_kernels.small_experts.configs import find
from longcat_kernels.small_experts.reference import Weights
from longcat_kernels.small_linear import BLOCK, FP8

__all__ = ["Weights", "experts", "is_faster", "supports"]


def supports(weights: Weights) -> bool:
    """Whether the kernels have been made for these weights: widths are multiples of 128, and bf16,
    or e4m3 with both scales."""
    fp8 = weights.gate_up_scales is not None and weights.down_scales is not None
    kind = FP8 if fp8 else torch.bfloat16
    matrices = weights.gate_up, weights.down
    return all(
        w.dtype == kind and w.is_contiguous() and w.shape[1] % BLOCK == w.shape[2] % BLOCK == 0
        for w in matrices
    )


def is_faster(weights: Weights, tokens: int) -> bool:
    """Whether `experts` beat SGLang's grouped GEMM for these weights when tuned."""
    _, rows, columns = weights.down.shape
    return find(columns, rows, tokens, weights.gate_up_scales is not None) is not None


def experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    factors: torch.Tensor,
    weights: Weights,
    identity: torch.Tensor | None = None,
) -> torch.Tensor:
    """x: [T, D] bf16. ids: [T, K] int32, negative: no expert here. factors: [T, K] fp32. identity:
    [T] fp32, None on ranks where another rank adds that part. Returns y [T, D].

    ValueError for weights that the kernels do not support.
    """
    if not supports(weights) or x.dtype != torch.bfloat16:
        raise ValueError(
            f"x {x.dtype}, experts {weights.gate_up.dtype} {tuple(weights.gate_up.shape)} and "
            f"{tuple(weights.down.shape)}: expected bf16, or e4m3 with two tensors of scales, and "
            f"widths that are multiples of {BLOCK}. Use SGLang's grouped GEMM."
        )
    if use_triton(x):
        from longcat_kernels.small_experts import launch

        return launch.experts(x, ids, factors, weights, identity)
    return reference.experts(x, ids, factors, weights, identity)
