"""The rows of the n-gram tables: plain bf16 or fp32, fp8 with a scale per row, or int4 in groups.

Owns the layout that the n-gram kernel reads. A plain row has nothing but its values. The others:

    fp8   [columns values in float8_e4m3fn | fp32 scale | padding to 16 bytes]
          value[c] = float(fp8[c]) * scale
    int4  [columns / 2 bytes | a bf16 scale for each 32 columns | padding to 16 bytes]
          value[c] = code[c] * scale[c // 32], with codes -8 to 7 in two's complement:
          byte k has the code of column k in its low half, of column columns / 2 + k in its high one

so that a row and its scales are one contiguous piece. It consists of 16-byte words for every width
that is a multiple of 32. A row of 256 columns takes 512, 272 and 144 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longcat_kernels.fp8_layout import FP8
from longcat_kernels.lite import INT4_GROUP
from longcat_kernels.row_layout import Format, int4_groups, row_width

_SCALE = 4  # bytes of an fp8 row's scale


@dataclass(frozen=True)
class RowTable:
    """storage: [rows, columns] of `dtype` for plain rows, else [rows, row_width] uint8 (above),
    which give values of `dtype`.

    A CUDA kernel reads a CPU tensor in place, so that tensor's memory must be registered with CUDA.
    """

    storage: torch.Tensor
    columns: int
    dtype: torch.dtype
    format: Format = "plain"

    def __post_init__(self) -> None:
        width = row_width(self.columns, self.format)
        kind = self.dtype if self.format == "plain" else torch.uint8
        if tuple(self.storage.shape[1:]) != (width,) or self.storage.dtype != kind:
            raise ValueError(
                f"row storage is {self.storage.dtype} {tuple(self.storage.shape)}: expected "
                f"{kind} [rows, {width}] for {self.format} rows of {self.columns} columns."
            )

    @property
    def stride(self) -> int:
        """Elements from one row to the next."""
        return self.storage.shape[1]

    @property
    def elements(self) -> torch.Tensor:
        """The storage as kernels address it."""
        return self.storage.view(FP8) if self.format == "fp8" else self.storage

    def values(self, stored: torch.Tensor) -> torch.Tensor:
        """Rows of the storage, [..., stride] -> their values, [..., columns] of `dtype`. The
        products are formed in fp32 and rounded once."""
        if self.format == "plain":
            return stored
        decode = _fp8_values if self.format == "fp8" else _int4_values
        return decode(stored, self.columns).to(self.dtype)


def quantise_fp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """weight [rows, columns], scale [rows] fp32 -> fp8 rows [rows, row_width] uint8."""
    columns = weight.shape[1]
    out = _storage(weight, "fp8")
    out[:, :columns] = (weight.float() / scale[:, None]).to(FP8).view(torch.uint8)
    out[:, columns : columns + _SCALE] = scale.float()[:, None].view(torch.uint8)
    return out


def row_scales(weight: torch.Tensor) -> torch.Tensor:
    """[rows] fp32: the largest magnitude of a row becomes fp8's largest, 448; rows of zeros keep 1.

    Taken over whole rows, before columns are split over ranks: every TP size gives the same values.
    """
    largest = weight.abs().amax(dim=1).float()
    return torch.where(largest > 0, largest / torch.finfo(FP8).max, 1.0)


def quantise_int4(weight: torch.Tensor) -> torch.Tensor:
    """weight [rows, columns] -> int4 rows [rows, row_width] uint8. A group's value of the largest
    magnitude becomes code -8, whatever its sign: all 16 codes are used. The last group of a row may
    be shorter. Ranks whose columns are whole groups get the values of one rank."""
    columns = weight.shape[1]
    half, count, out = columns // 2, int4_groups(columns), _storage(weight, "int4")
    padded = torch.nn.functional.pad(weight.float(), (0, count * INT4_GROUP - columns))
    groups = padded.unflatten(1, (count, INT4_GROUP))
    peaks = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scales = (peaks / -8).bfloat16()
    divisors = torch.where(scales == 0, 1, scales).float()
    codes = (groups / divisors).round_().clamp_(-8, 7).to(torch.int8).flatten(1) & 15
    out[:, :half] = (codes[:, :half] | codes[:, half:columns] << 4).view(torch.uint8)
    out[:, half : half + 2 * count] = scales[:, :, 0].contiguous().view(torch.uint8)
    return out


def _storage(weight: torch.Tensor, format: Format) -> torch.Tensor:
    shape = (weight.shape[0], row_width(weight.shape[1], format))
    return torch.zeros(shape, dtype=torch.uint8, device=weight.device)


def _fp8_values(stored: torch.Tensor, columns: int) -> torch.Tensor:
    scale = stored[..., columns : columns + _SCALE].contiguous().view(torch.float32)
    return stored[..., :columns].contiguous().view(FP8).float() * scale


def _int4_values(stored: torch.Tensor, columns: int) -> torch.Tensor:
    half, count = columns // 2, int4_groups(columns)
    scales = stored[..., half : half + 2 * count].contiguous().view(torch.bfloat16).float()
    scales = scales.repeat_interleave(INT4_GROUP, -1)[..., :columns]
    packed = stored[..., :half]
    codes = torch.cat((packed & 15, packed >> 4), dim=-1).to(torch.int8)
    return torch.where(codes > 7, codes - 16, codes).float() * scales
