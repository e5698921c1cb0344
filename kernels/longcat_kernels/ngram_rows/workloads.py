"""Row tables for tests and benchmarks; batches and hash constants are `ngram_ids.workloads`'."""

from __future__ import annotations

import torch

from longcat_kernels.ngram_ids import workloads as lite
from longcat_kernels.row_table import RowTable, quantise, row_scales

COLUMNS = 256
DECODE_BATCHES = (1, 4, 16, 64, 256, 512, 1024)
PREFILL_TOKENS = 8192


def make_rows(count: int, columns: int, kind: str, *, seed: int, device: str) -> RowTable:
    """`count` random rows of the given kind: bf16, fp32, or fp8 (giving bf16)."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(count, columns, generator=random)
    if kind == "fp8":
        storage = quantise(weight, row_scales(weight))
        return RowTable(storage.to(device), columns, torch.bfloat16)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    return RowTable(weight.to(device, dtype), columns, dtype)


def bytes_moved(tokens: int, rows: RowTable) -> int:
    """Rows read and written; ids, tokens and the ring are below 2 % of them."""
    item = rows.storage.element_size()
    return tokens * lite.TABLES * (rows.stride * item + rows.columns * rows.dtype.itemsize)
