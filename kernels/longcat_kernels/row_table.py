"""The rows of the n-gram tables: bf16, fp32, or fp8 with a scale per row.

Owns the layout that the n-gram kernel reads. Rows of bf16 and fp32 have nothing but their values;
an fp8 row is:

    row r = [columns values in float8_e4m3fn | fp32 scale | padding to 16 bytes]
    value = float(fp8) * scale[r]

so that a row and its scale are one contiguous piece. It consists of 16-byte words for every width
that is a multiple of 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longcat_kernels.lite import FP8_ROW_SCALE_BYTES

SCALE_BYTES = FP8_ROW_SCALE_BYTES
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class RowTable:
    """storage: [rows, columns] of `dtype`, or [rows, columns + 16] uint8 of fp8 rows (above).

    A CUDA kernel reads a CPU tensor in place, so that tensor's memory must be registered with CUDA.
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
