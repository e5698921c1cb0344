"""The ring of recent tokens per request slot, and the look-up of a forward's rows.

`ring[slot, position mod R]` holds the token at that absolute position. Every forward writes its
input tokens at their positions and reads the n-1 predecessors, from the batch if they are in it.
This makes three things simple. A sampled token needs no hook: it enters the ring when it is fed. A
rejected draft needs no rollback: the next window overwrites its position. A padded row of a CUDA
graph writes only to slot 0, which SGLang keeps free. Only the forward stream writes the ring, in
the order of forwards, so a slot's next owner cannot meet a late write of the previous one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from longcat_kernels.lite import RING
from longcat_kernels.ngram import (
    HashParams,
    Prefill,
    Window,
    extend_ids,
    extend_rows,
    make_hash_params,
    seed,
    window_ids,
    window_rows,
)
from longcat_kernels.row_table import RowTable
from sglang_longcat.config import LongcatConfig
from sglang_longcat.layers.step import is_decode_or_verify

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_longcat.ngram.seeds import Seeds


class NgramCache:
    """The ring and the hash constants on one device; each look-up also updates the ring."""

    def __init__(self, config: LongcatConfig, device: torch.device) -> None:
        assert config.ngram is not None
        ngram = config.ngram
        self.device = device
        self.ring: torch.Tensor | None = None
        self.hash: HashParams = make_hash_params(
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

    def rows(self, input_ids: torch.Tensor, batch: ForwardBatch, rows: RowTable) -> torch.Tensor:
        """The rows of every input token, side by side: [T, tables * columns]."""
        if self._is_idle(batch):
            size = (input_ids.shape[0], self.hash.tables * rows.columns)
            return torch.zeros(size, dtype=rows.dtype, device=input_ids.device)
        return self._step(input_ids, batch, window_rows, extend_rows, rows)

    def ids(self, input_ids: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """The row numbers of every input token in the fused table: [T, tables] int64."""
        if self._is_idle(batch):
            return input_ids.new_zeros((input_ids.shape[0], self.hash.tables))
        return self._step(input_ids, batch, window_ids, extend_ids)

    @staticmethod
    def _is_idle(batch: ForwardBatch) -> bool:
        """A data-parallel rank without requests: it takes part in the collectives only."""
        return not is_decode_or_verify(batch) and (
            not batch.req_pool_indices.shape[0] or batch.extend_start_loc is None
        )

    def _step(
        self,
        input_ids: torch.Tensor,
        batch: ForwardBatch,
        on_window: Callable[..., torch.Tensor],
        on_prefill: Callable[..., torch.Tensor],
        *rows: RowTable,
    ) -> torch.Tensor:
        if self.ring is None:
            raise RuntimeError("the N-gram cache has no ring yet: allocate() runs at start-up")
        step = Window(input_ids, batch.positions, batch.req_pool_indices)
        if is_decode_or_verify(batch):
            return on_window(step, self.ring, self.hash, *rows)
        prefill = Prefill(*step, batch.extend_start_loc, batch.extend_seq_lens)
        return on_prefill(prefill, self.ring, self.hash, *rows)
