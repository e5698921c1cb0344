"""The ring of recent tokens per request slot, indexed by absolute position, and a forward's rows.

`ring[slot, position mod R]` holds the token at that position. Every forward writes its input tokens
at their positions and reads the n-1 predecessors, from the batch where they are in it. So a sampled
token needs no hook (it enters when it is fed), a rejected draft no rollback (the next window
overwrites its position), and a padded CUDA-graph row writes only to slot 0, which SGLang keeps
free. The ring is written on the forward stream alone, in forward order: a slot's next owner cannot
meet a late write of the previous one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from longcat_kernels.ngram_ids import HashTable, extend_ids, make_hash_table, seed, window_ids
from longcat_kernels.ngram_rows import extend_rows, window_rows
from longcat_kernels.row_table import RowTable
from sglang_longcat.config import LongcatConfig

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_longcat.ngram.seeds import Seeds

# 64 bytes a slot. At least n-1 predecessors (3) plus the widest verify window (13 tokens).
RING = 16


class NgramCache:
    """State of the N-gram embedding on one device, and the row look-up that keeps it in step."""

    def __init__(self, config: LongcatConfig, device: torch.device) -> None:
        assert config.ngram is not None
        ngram = config.ngram
        self.device = device
        self.ring: torch.Tensor | None = None
        self.table: HashTable = make_hash_table(
            vocab_size=ngram.vocab_size,
            rows=ngram.rows,
            orders=tuple(ngram.order(i) for i in range(ngram.tables)),
            eos=config.eos_token_ids,
            device=device,
        )

    def allocate(self, slots: int) -> int:
        """One row per request slot; returns its size in bytes. Zeros are never read as tokens."""
        self.ring = torch.zeros((slots, RING), dtype=torch.int32, device=self.device)
        return self.ring.nbytes

    def seed(self, seeds: Seeds | None) -> None:
        if seeds is not None and self.ring is not None:
            slots, positions, tokens = seeds.values.to(self.device, non_blocking=True)
            seed(self.ring, slots, positions, tokens)

    def rows(self, input_ids: torch.Tensor, batch: ForwardBatch, table: RowTable) -> torch.Tensor:
        """What the tables hold for every input token: [T, tables * columns]."""
        if self._is_idle(batch):
            size = (input_ids.shape[0], len(self.table.moduli) * table.columns)
            return torch.zeros(size, dtype=table.dtype, device=input_ids.device)
        return self._step(input_ids, batch, window_rows, extend_rows, table)

    def ids(self, input_ids: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Fused-table rows of every input token: [T, tables] int64. `rows` without the look-up."""
        if self._is_idle(batch):
            return input_ids.new_zeros((input_ids.shape[0], len(self.table.moduli)))
        return self._step(input_ids, batch, window_ids, extend_ids)

    @staticmethod
    def _is_idle(batch: ForwardBatch) -> bool:
        """A data-parallel rank without requests, which takes part in the collectives only."""
        windows = batch.forward_mode.is_decode() or batch.forward_mode.is_target_verify()
        return not windows and (
            not batch.req_pool_indices.shape[0] or batch.extend_start_loc is None
        )

    def _step(
        self,
        input_ids: torch.Tensor,
        batch: ForwardBatch,
        window: Callable[..., torch.Tensor],
        extend: Callable[..., torch.Tensor],
        *tables: RowTable,
    ) -> torch.Tensor:
        if self.ring is None:
            raise RuntimeError("the N-gram cache has no ring yet: allocate() runs at start-up")
        where = input_ids, batch.positions, batch.req_pool_indices
        if batch.forward_mode.is_decode() or batch.forward_mode.is_target_verify():
            return window(*where, self.ring, self.table, *tables)
        pieces = batch.extend_start_loc, batch.extend_seq_lens
        return extend(*where, *pieces, self.ring, self.table, *tables)
