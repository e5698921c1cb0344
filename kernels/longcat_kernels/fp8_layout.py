"""Inputs of block-FP8 GEMMs, quantised by the kernel that produces the activation.

    amax[t, g]  = max(|x[t, c]| for the 128 columns c of group g), at least FLOOR
    scale[t, g] = amax[t, g] / 448
    q[t, c]     = fp8(x[t, c] * 448 / amax[t, g])

x is the activation rounded to its dtype, as the producer writes it without fusion: quantising in
the same kernel changes no value. Scales have the layout that DeepGEMM's TMA loads read on Hopper:
fp32, one row per group, rows padded to a multiple of four tokens.

Owns the layout, and the formula in plain torch. Three kernels write pairs: `mla_prologue` the
query's latent, and library kernels the residual add + RMSNorm and SwiGLU
(`sglang_longcat/layers/fp8_inputs.py`).
"""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
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


def quantise(x: torch.Tensor) -> Pair:
    """The formula in plain torch. x: [T, C], C a multiple of 128."""
    tokens, width = x.shape
    rows = scale_rows(tokens, width, x.device)
    groups = x.float().unflatten(1, (-1, GROUP))
    amax = groups.abs().amax(dim=2).clamp(min=FLOOR)
    scales_of(rows, tokens).copy_(amax / LARGEST)
    q = (groups * (LARGEST / amax)[:, :, None]).flatten(1)
    return q.to(FP8), scales_of(rows, tokens)


def quantise_blocks(weight: torch.Tensor) -> Pair:
    """A weight [N, K] as block FP8: [N, K] float8_e4m3fn and scales [ceil(N / 128), ceil(K / 128)]
    fp32, with weight = q * scale of its block of 128 x 128, and the largest value of a block 448.
    Blocks at the ends may be smaller."""
    rows, columns = weight.shape
    pad = -columns % GROUP, -rows % GROUP
    padded = torch.nn.functional.pad(weight.float(), (0, pad[0], 0, pad[1]))
    blocks = padded.unflatten(0, (-1, GROUP)).unflatten(2, (-1, GROUP))
    scales = blocks.abs().amax(dim=(1, 3)).clamp(min=FLOOR) / LARGEST
    q = (blocks / scales[:, None, :, None]).to(FP8)
    return q.flatten(2, 3).flatten(0, 1)[:rows, :columns].contiguous(), scales


def widen(pair: Pair) -> torch.Tensor:
    """The values that a pair stands for, [T, C] fp32."""
    q, scales = pair
    return q.float() * scales.repeat_interleave(GROUP, dim=1)
