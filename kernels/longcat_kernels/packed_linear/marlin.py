"""Where Marlin keeps which number of a 4-bit weight, after SGLang has repacked it.

    W[n, k] = (value[n, k] - 8) * scale[n, k // group]        value: 0 .. 15

A weight [N, K] is int32 [K / 16, 2 N]. Each 128 words of a row are a tile of 16 inputs and 64
outputs, the operand of Marlin's tensor-core instructions. Word 4 * (4 * i + q) + j of a tile holds

    output  16 j + 8 h + i       h: 0, 1
    input   2 q + 8 e + o        e, o: 0, 1

in bits 4 m .. 4 m + 3, where m = 4 o + 2 h + e. So i is 0 .. 7, and q and j are 0 .. 3. Scales are
[K / group, N]; each 64 outputs are stored in the order i, j, h. Both hold for fewer inputs a group
than the weight has: Marlin stores the scales of a single group in another order.

Owns the two orders, in torch. SGLang's repacking is `gptq_marlin_repack` and
`marlin_permute_scales`; `tests/model/test_packed_gpu.py` compares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

TILE_K, TILE_N = 16, 64  # inputs and outputs of a tile
PER_WORD = 8
MIDDLE = 8  # the value that means 0


class Packed(NamedTuple):
    """A weight [N, K] as Marlin holds it."""

    words: torch.Tensor  # [K / 16, 2 N] int32
    scales: torch.Tensor  # [K / group, N] bf16


def outputs(words: torch.Tensor) -> int:
    return words.shape[1] * PER_WORD // TILE_K


def inputs(words: torch.Tensor) -> int:
    return words.shape[0] * TILE_K


def pack(values: torch.Tensor, scales: torch.Tensor) -> Packed:
    """values [N, K] in 0 .. 15, scales [N, K / group]."""
    n, k = values.shape
    cells = values.int().view(n // TILE_N, 4, 2, 8, k // TILE_K, 2, 4, 2)  # t j h i, b e q o
    cells = cells.permute(4, 0, 3, 6, 1, 7, 2, 5).reshape(-1, PER_WORD)  # b t i q j, o h e
    words = torch.zeros_like(cells[:, 0])
    for m in range(PER_WORD):
        words |= cells[:, m] << (4 * m)
    ordered = scales.t().reshape(-1, n // TILE_N, 4, 2, 8).permute(0, 1, 4, 2, 3)
    return Packed(words.view(k // TILE_K, -1), ordered.reshape(-1, n).contiguous())


def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `pack`: values [N, K] int32, scales [N, K / group]."""
    n, k = outputs(packed.words), inputs(packed.words)
    shifts = 4 * torch.arange(PER_WORD, dtype=torch.int32, device=packed.words.device)
    cells = (packed.words[..., None] >> shifts) & 15
    cells = cells.view(k // TILE_K, n // TILE_N, 8, 4, 4, 2, 2, 2)  # b t i q j o h e
    values = cells.permute(1, 4, 6, 2, 0, 7, 3, 5).reshape(n, k)  # t j h i, b e q o
    scales = packed.scales.view(-1, n // TILE_N, 8, 4, 2).permute(0, 1, 3, 4, 2).reshape(-1, n)
    return values, scales.t()


def widen(packed: Packed) -> torch.Tensor:
    """The weight [N, K], fp32."""
    values, scales = unpack(packed)
    group = values.shape[1] // scales.shape[1]
    return (values - MIDDLE) * scales.float().repeat_interleave(group, 1)
