"""N-gram rows: append to the ring, hash, and gather the rows that the ids name, in one launch.

    out[t] = concat_i table[id[t, i]]            [T, tables * columns], ids as in `ngram_ids`

The fused table may lie in GPU memory or in pinned host memory, which a CUDA kernel reads in place:
a token takes 12 rows of 512 bytes. How a row is laid out: `row_table`.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.ngram_ids import HashTable, window_width
from longcat_kernels.ngram_rows import reference
from longcat_kernels.row_table import RowTable


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
