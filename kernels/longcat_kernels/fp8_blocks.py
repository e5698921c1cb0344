"""Block-FP8 weights: 128 x 128 values share a scale, as in the published checkpoint.

    scale[i, j] = max(|w| of the block), at least FLOOR, / 448
    q           = fp8(w / scale)            w is about q * scale

Blocks at the lower and the right edge may be smaller. Owns the layout and the formula in plain
torch. `fp8_layout` has the activations' layout, where 128 columns of one row share a scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from longcat_kernels.fp8_layout import FLOOR, LARGEST

BLOCK = 128
_CHUNK = 8 * BLOCK  # rows at a time: 12 MiB of fp32 for 3,072 columns, in place of 1.5 GiB


def grid(rows: int, columns: int) -> tuple[int, int]:
    """How many blocks a weight has in each direction: the shape of its scales."""
    return -(-rows // BLOCK), -(-columns // BLOCK)


def quantise_into(weight: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> None:
    """Write q [N, K] float8_e4m3fn and scales [ceil(N / 128), ceil(K / 128)] fp32 of weight [N, K].
    ValueError for other shapes."""
    if q.shape != weight.shape or scales.shape != grid(*weight.shape):
        raise ValueError(
            f"weight {tuple(weight.shape)} into {tuple(q.shape)} with scales "
            f"{tuple(scales.shape)}: expected a copy of the same shape and scales "
            f"{grid(*weight.shape)}."
        )
    for first in range(0, len(weight), _CHUNK):
        rows = slice(first, first + _CHUNK)
        blocks = slice(first // BLOCK, (first + _CHUNK) // BLOCK)
        _quantise_chunk(weight[rows], q[rows], scales[blocks])


def _quantise_chunk(weight: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> None:
    rows, columns = weight.shape
    padding = (0, -columns % BLOCK, 0, -rows % BLOCK)
    blocks = F.pad(weight.float(), padding).unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    scales.copy_(blocks.abs().amax(dim=(1, 3)).clamp(min=FLOOR) / LARGEST)
    scaled = (blocks / scales[:, None, :, None]).flatten(2).flatten(0, 1)
    q.copy_(scaled[:rows, :columns])


def widen(q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The values that the copy stands for, [N, K] fp32."""
    rows, columns = q.shape
    spread = scales.repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)
    return q.float() * spread[:rows, :columns]


def linear(x: torch.Tensor, q: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [T, K] times the weight's transpose, summed in fp32 -> bf16 [T, N]."""
    return (x.float() @ widen(q, scales).t()).bfloat16()
