"""Rows of the KV pool: plain bf16, or FP8 with four scales of the token's own.

A bf16 row is [latent, C values | rope, R values]. An FP8 row, for C = 512 and R = 64:

    bytes 0 to 511     the latent's C values, float8_e4m3fn
    bytes 512 to 527   four scales, fp32: one for each quarter of the values
    bytes 528 to 655   the rope part's R values, bf16

    amax[g]   = max(|latent[c]| for the C / 4 values c of quarter g), at least FLOOR
    scale[g]  = amax[g] / 448
    fp8[c]    = fp8(latent[c] * (448 / amax[g]))
    latent[c] = bf16(float(fp8[c]) * scale[g])            what every reader takes for the value

656 bytes instead of 1,152: C + 16 + 2 R. Every part begins at a multiple of 16 bytes, which is what
one load of a kernel takes. So one scale would need 16 bytes as four do, and four lose least of all
choices measured (docs/measurements/kv-cache.md): they make the largest value of each quarter exact.
The rope part stays bf16, because positions far apart differ in its last digits. For C = 512 these
are the bytes that FlashMLA's sparse kernels read (its README, "FP8 KV Cache").
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels.fp8_layout import FLOOR, FP8, LARGEST
from longcat_kernels.kv_width import WORD, row_width

__all__ = ["FP8", "SCALES", "Rows", "is_fp8", "pack", "parts", "rounded", "row_width", "unpack"]
SCALES = 4  # of a row: a word of fp32


class Rows(NamedTuple):
    """The parts of a pool's rows, in place."""

    latents: torch.Tensor  # [N, C] bf16, or float8_e4m3fn
    ropes: torch.Tensor  # [N, R] bf16
    scales: torch.Tensor  # [N, 4] fp32; bf16 rows have none, and nobody reads what stands here

    @property
    def stride(self) -> int:
        """From one row to the next: in elements for bf16, in words of 16 bytes for FP8."""
        elements = self.latents.stride(0)
        return elements // WORD if self.latents.dtype == FP8 else elements


def is_fp8(rows: torch.Tensor) -> bool:
    """FP8 rows are kept as bytes, because a row holds three dtypes."""
    return rows.dtype == torch.uint8


def parts(rows: torch.Tensor, rank: int, rope: int) -> Rows:
    """Views of a layer's rows, [N, width] or [N, 1, width] as SGLang's pool keeps them. ValueError
    if the width is not that of `rank` and `rope`, or FP8 rows do not begin at whole words."""
    rows = rows[:, 0] if rows.dim() == 3 else rows
    if rows.shape[1] != (width := row_width(rank, rope, fp8=is_fp8(rows))):
        raise ValueError(
            f"KV rows {tuple(rows.shape)} of {rows.dtype}: expected [rows, {width}] for {rank} + "
            f"{rope} values. Pass the layer's own buffer: bf16 values, or bytes of FP8 rows."
        )
    if not is_fp8(rows):
        return Rows(rows[:, :rank], rows[:, rank:], rows)
    if rows.data_ptr() % WORD or rows.stride(0) % WORD:
        raise ValueError(
            f"FP8 KV rows at address {rows.data_ptr():#x}, {rows.stride(0)} bytes apart: expected "
            f"multiples of {WORD}. Allocate the pool as one contiguous tensor."
        )
    scales = rows[:, rank : rank + WORD].view(torch.float32)
    return Rows(rows[:, :rank].view(FP8), rows[:, rank + WORD :].view(torch.bfloat16), scales)


def pack(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """bf16 rows [..., C + R] -> FP8 rows [..., bytes] uint8."""
    row_width(rank, rows.shape[-1] - rank, fp8=True)
    quarters = rows[..., :rank].float().unflatten(-1, (SCALES, -1))
    amax = quarters.abs().amax(dim=-1).clamp(min=FLOOR)
    # torch divides by a number, or a number by a tensor, as a product with the reciprocal, which
    # rounds twice: the first on a GPU only, the second everywhere. Kernels divide once.
    largest = torch.full_like(amax, LARGEST)
    factor = largest / amax
    q = (quarters * factor[..., None]).to(FP8).flatten(-2)
    stored = q, amax / largest, rows[..., rank:].bfloat16().contiguous()
    return torch.cat([part.view(torch.uint8) for part in stored], dim=-1)


def unpack(stored: torch.Tensor, rank: int) -> torch.Tensor:
    """FP8 rows [..., bytes] uint8 -> bf16 rows [..., C + R]: the values that they stand for."""
    scales = stored[..., rank : rank + WORD].contiguous().view(torch.float32)
    q = stored[..., :rank].contiguous().view(FP8).float().unflatten(-1, (SCALES, -1))
    latents = (q * scales[..., None]).flatten(-2).bfloat16()
    return torch.cat((latents, stored[..., rank + WORD :].contiguous().view(torch.bfloat16)), -1)


def rounded(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """What an FP8 pool gives back for rows [..., C + R] of any float type: bf16 of that shape."""
    return unpack(pack(rows, rank), rank)
