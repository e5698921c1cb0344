"""The n-gram kernel as it is served, gathering rows: windows of each width, and a ragged prefill.

The variants that store ids are for tests and benchmarks, and are not warmed up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.ngram import Prefill, Window, extend_rows, make_hash_params, window_rows
from longcat_kernels.row_layout import row_width
from longcat_kernels.row_table import RowTable

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """SGLang's types: everything is int64, but a prefill's starts and lengths are int32 in an eager
    step. In a CUDA graph's static buffers they are int64."""
    params = make_hash_params(
        vocab_size=3,
        rows=(3,) * len(sizes.orders),
        orders=sizes.orders,
        eos=(2,) * sizes.eos,
        device=device,
    )
    rows = _rows(device, sizes)
    ring = torch.zeros(1, sizes.ring, dtype=torch.int32, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    for width in sizes.windows:
        tokens = torch.zeros(width, dtype=torch.int64, device=device)
        window = Window(tokens, positions=torch.arange(width, device=device), slots=zero)
        window_rows(window, ring, params, rows)
    for dtype in (torch.int32, torch.int64):
        start = torch.zeros(1, dtype=dtype, device=device)
        prefill = Prefill(zero, positions=zero, slots=zero, starts=start, lengths=start + 1)
        extend_rows(prefill, ring, params, rows)


def _rows(device: torch.device | str, sizes: Sizes) -> RowTable:
    shape = 3 * len(sizes.orders), row_width(sizes.columns, sizes.row_format)
    kind = sizes.dtype if sizes.row_format == "plain" else torch.uint8
    storage = torch.zeros(shape, dtype=kind, device=device)
    return RowTable(storage, sizes.columns, sizes.dtype, sizes.row_format)
