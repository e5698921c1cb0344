"""The ring of recent tokens per request slot, indexed by absolute position, and a forward's rows.

`ring[slot, position mod R]` holds the token at that position. Every forward writes its input tokens
at their positions and reads the n-1 predecessors, from the batch where they are in it. So a sampled
token needs no hook (it enters when it is fed), a rejected draft no rollback (the next window
overwrites its position), and a padded CUDA-graph row writes only to slot 0, which SGLang keeps
free. The ring is written on the forward stream alone, in forward order: a slot's next owner cannot
meet a late write of the previous one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.ngram_ids import HashTable, make_hash_table, seed
from longcat_kernels.ngram_rows import RowTable, extend_rows, window_rows
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
        if self.ring is None:
            raise RuntimeError("the N-gram cache has no ring yet: allocate() runs at start-up")
        slots, positions = batch.req_pool_indices, batch.positions
        if batch.forward_mode.is_decode() or batch.forward_mode.is_target_verify():
            return window_rows(input_ids, positions, slots, self.ring, self.table, table)
        if not slots.shape[0] or batch.extend_start_loc is None:  # an idle data-parallel rank
            size = (input_ids.shape[0], len(self.table.moduli) * table.columns)
            return torch.zeros(size, dtype=table.dtype, device=input_ids.device)
        return extend_rows(
            input_ids,
            positions,
            slots,
            batch.extend_start_loc,
            batch.extend_seq_lens,
            self.ring,
            self.table,
            table,
        )
