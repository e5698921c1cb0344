"""Inputs of block-FP8 GEMMs, quantised by the kernel that produces the activation.

    amax[t, g]  = max(|x[t, c]| for the 128 columns c of group g), at least FLOOR
    scale[t, g] = amax[t, g] / 448
    q[t, c]     = fp8(x[t, c] * 448 / amax[t, g])

x is what the producer writes without fusion, rounded to the activations' dtype: quantising in the
same kernel changes no value. Scales lie as DeepGEMM's TMA loads read them on Hopper: fp32, a row a
group, rows padded to a multiple of four tokens.

Owns the formula, the layout, and the references of three producers: residual add + RMSNorm, SwiGLU
(libraries have kernels for both: `sglang_longcat/layers/fp8_inputs.py`), and MLA's query latent
(`mla_prologue`).
"""

from __future__ import annotations

import torch

GROUP = 128
LARGEST = 448.0  # of float8_e4m3fn
FLOOR = 1e-10  # keeps a group of zeros finite; flashinfer's norm has 1e-4
ALIGNED = 4  # tokens: 16 bytes of fp32

Pair = tuple[torch.Tensor, torch.Tensor]
"""q [T, C] float8_e4m3fn, contiguous; scales [T, C / 128] fp32, of `scale_rows`."""


def scale_rows(tokens: int, width: int, device: torch.device | str) -> torch.Tensor:
    """Uninitialised memory for scales, [C / 128, T rounded up to 4]; the GEMM reads `scales_of` it.

    ValueError if the width is not a multiple of 128.
    """
    if width % GROUP:
        raise ValueError(
            f"{width} columns: expected a multiple of {GROUP}, the group that shares a scale. "
            "Quantise this activation in its GEMM."
        )
    padded = -(-tokens // ALIGNED) * ALIGNED
    return torch.empty(width // GROUP, padded, dtype=torch.float32, device=device)


def scales_of(rows: torch.Tensor, tokens: int) -> torch.Tensor:
    """[T, C / 128] of strides (1, padded tokens)."""
    return rows.t()[:tokens]
