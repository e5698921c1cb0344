"""The n-gram row op in plain torch: what the kernel must equal bit for bit, and the CPU path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.ngram_ids import reference as ids

if TYPE_CHECKING:
    from longcat_kernels.ngram_ids import HashTable
    from longcat_kernels.row_table import RowTable


def gather(row_ids: torch.Tensor, rows: RowTable) -> torch.Tensor:
    """row_ids [T, tables] -> [T, tables * columns] of rows.dtype, on the device of row_ids."""
    found = torch.nn.functional.embedding(row_ids.to(rows.storage.device), rows.storage)
    if rows.scaled:
        values, rest = found.split((rows.columns, rows.stride - rows.columns), dim=-1)
        scale = rest[..., :4].contiguous().view(torch.float32)
        found = (values.contiguous().view(torch.float8_e4m3fn).float() * scale).to(rows.dtype)
    return found.flatten(1).to(row_ids.device)


def window_rows(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
    rows: RowTable,
) -> torch.Tensor:
    return gather(ids.window_ids(tokens, positions, slots, ring, table), rows)


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
    return gather(ids.extend_ids(tokens, positions, slots, starts, lengths, ring, table), rows)
