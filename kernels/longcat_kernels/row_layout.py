"""How wide a stored row of the n-gram tables is. `row_table.py` has the layouts.

Imports no torch, so that `sglang_longcat/planning` may read it.
"""

from __future__ import annotations

from typing import Literal

from longcat_kernels.lite import FP8_ROW_SCALE_BYTES, INT4_GROUP, INT4_ROW_ALIGN

Format = Literal["plain", "fp8", "int4"]


def row_width(columns: int, format: Format) -> int:
    """Elements of a row's storage: values, or bytes of fp8 and int4. ValueError if int4 cannot hold
    that many columns."""
    if format == "plain":
        return columns
    if format == "fp8":
        return columns + FP8_ROW_SCALE_BYTES
    if columns % 2:
        raise ValueError(f"int4 rows of {columns} columns: expected an even number. Use fp8 rows.")
    used = columns // 2 + 2 * int4_groups(columns)
    return -(-used // INT4_ROW_ALIGN) * INT4_ROW_ALIGN


def int4_groups(columns: int) -> int:
    """The last group may be shorter."""
    return -(-columns // INT4_GROUP)
