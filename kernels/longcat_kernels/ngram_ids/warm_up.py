"""The n-gram kernel as it is served, gathering rows: windows of each width, and a ragged prefill.

The kernel that stores ids (`ngram_ids`) is for tests and benchmarks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.ngram_ids import make_hash_table
from longcat_kernels.ngram_rows import extend_rows, window_rows
from longcat_kernels.row_table import SCALE_BYTES, RowTable

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """SGLang's types: everything int64; a prefill's starts and lengths int32 if eager, int64 in a
    CUDA graph's static buffers."""
    table = make_hash_table(
        vocab_size=3,
        rows=(3,) * len(sizes.orders),
        orders=sizes.orders,
        eos=(2,) * sizes.eos,
        device=device,
    )
    rows = _rows(device, sizes)
    ring = torch.zeros(1, sizes.ring, dtype=torch.int32, device=device)
    slot = torch.zeros(1, dtype=torch.int64, device=device)
    for width in sizes.windows:
        tokens = torch.zeros(width, dtype=torch.int64, device=device)
        window_rows(tokens, torch.arange(width, device=device), slot, ring, table, rows)
    for dtype in (torch.int32, torch.int64):
        start = torch.zeros(1, dtype=dtype, device=device)
        extend_rows(slot, slot, slot, start, start + 1, ring, table, rows)


def _rows(device: torch.device | str, sizes: Sizes) -> RowTable:
    stride = sizes.columns + (SCALE_BYTES if sizes.fp8_rows else 0)
    kind = torch.uint8 if sizes.fp8_rows else sizes.dtype
    storage = torch.zeros((3 * len(sizes.orders), stride), dtype=kind, device=device)
    return RowTable(storage, sizes.columns, sizes.dtype)
