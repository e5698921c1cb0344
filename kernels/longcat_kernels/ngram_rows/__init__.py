"""N-gram rows: append to the ring, hash, and gather the rows that the ids name, in one launch.

    out[t] = concat_i table[id[t, i]]            [T, tables * columns], ids as in `ngram_ids`

The fused table may lie in GPU memory or in pinned host memory, which a CUDA kernel reads in place:
a token takes 12 rows of 512 bytes. Rows are bf16 or fp32 as they are, or fp8:

    row r = [columns values in float8_e4m3fn | fp32 scale | padding to 16 bytes]
    value = float(fp8) * scale[r]

so that a row and its scale are one contiguous piece, of 16-byte words for every width that is a
multiple of 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.ngram_ids import HashTable, window_width
from longcat_kernels.ngram_rows import reference

SCALE_BYTES = 16  # fp32 and padding
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class RowTable:
    """storage: [rows, columns] of `dtype`, or [rows, columns + 16] uint8 of fp8 rows (above).

    A CPU tensor is read by CUDA kernels as it is, so its memory must be registered with CUDA then.
    """

    storage: torch.Tensor
    columns: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        width = self.columns + (SCALE_BYTES if self.scaled else 0)
        kind = torch.uint8 if self.scaled else self.dtype
        if tuple(self.storage.shape[1:]) != (width,) or self.storage.dtype != kind:
            raise ValueError(
                f"row storage is {self.storage.dtype} {tuple(self.storage.shape)}: expected "
                f"{kind} [rows, {width}] for rows of {self.columns} columns."
            )

    @property
    def scaled(self) -> bool:
        return self.storage.dtype == torch.uint8

    @property
    def stride(self) -> int:
        """Elements from one row to the next."""
        return self.storage.shape[1]

    @property
    def elements(self) -> torch.Tensor:
        """The storage as kernels address it."""
        return self.storage.view(FP8) if self.scaled else self.storage


def quantise(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """weight [rows, columns], scale [rows] fp32 -> fp8 rows [rows, columns + 16] uint8."""
    out = torch.zeros(
        (weight.shape[0], weight.shape[1] + SCALE_BYTES), dtype=torch.uint8, device=weight.device
    )
    values = weight.float() / scale[:, None]
    out[:, : weight.shape[1]] = values.to(FP8).view(torch.uint8)
    out[:, weight.shape[1] : weight.shape[1] + 4] = scale.float()[:, None].view(torch.uint8)
    return out


def row_scales(weight: torch.Tensor) -> torch.Tensor:
    """[rows] fp32: the largest magnitude of a row becomes fp8's largest, 448; rows of zeros keep 1.

    Taken over whole rows, before columns are split over ranks: every TP size gives the same values.
    """
    largest = weight.abs().amax(dim=1).float()
    return torch.where(largest > 0, largest / torch.finfo(FP8).max, 1.0)


def window_rows(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
    rows: RowTable,
) -> torch.Tensor:
    """Decode and verify; arguments as `ngram_ids.window_ids`. Returns [B*W, tables * columns] of
    rows.dtype.

    Exact: bf16 and fp32 rows are copied, fp8 rows multiplied in fp32 and rounded once.
    """
    width = window_width(tokens, slots, ring, table)
    if use_triton(tokens):
        from longcat_kernels.ngram_ids._triton import launch

        return launch(tokens, positions, slots, slots, slots, ring, table, width, rows)
    return reference.window_rows(tokens, positions, slots, ring, table, rows)


def extend_rows(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
    rows: RowTable,
) -> torch.Tensor:
    """Prefill; arguments as `ngram_ids.extend_ids`. [T, tables * columns] of rows.dtype. Exact."""
    if use_triton(tokens):
        from longcat_kernels.ngram_ids._triton import launch

        return launch(tokens, positions, slots, starts, lengths, ring, table, 0, rows)
    return reference.extend_rows(tokens, positions, slots, starts, lengths, ring, table, rows)
