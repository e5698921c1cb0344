"""The N-gram embedding: 12 hashed rows per token, one projection, one word row, one all-reduce.

    x_t = (word[t] + sum_i W_i table_i[id_{t,i}]) / (1 + tables)        (paper section 3, eq. 3)

The tables share the hidden size, so the sum of projections is one [T, D] x [D, D] product of the
concatenated rows. Each rank owns a column slice of every table and the matching rows of the
projection: its product is a partial sum, as is its vocabulary-parallel word row, and one all-reduce
completes both. Owns tables, projection and word embedding; ids come from `ngram/cache.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.dp_attention import attn_tp_all_reduce, is_dp_attention_enabled
from sglang.srt.layers.layer_boundary import get_attn_tp_context
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.runtime_context import get_parallel
from torch import nn
from torch.nn import functional

from sglang_longcat.config import ConfigError, LongcatConfig
from sglang_longcat.ngram.cache import NgramCache

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


_BLOCK_ROWS = 1 << 20


class NgramEmbedding(nn.Module):
    """Input embedding of the whole model; `forward(ids [T], batch) -> [T, hidden]`."""

    def __init__(self, config: LongcatConfig) -> None:
        super().__init__()
        assert config.ngram is not None
        self.ngram = config.ngram
        self.use_attn_tp = is_dp_attention_enabled()
        parallel = get_parallel()
        self.tp_size = parallel.attn_tp_size if self.use_attn_tp else parallel.tp_size
        self.tp_rank = parallel.attn_tp_rank if self.use_attn_tp else parallel.tp_rank
        if self.ngram.width % self.tp_size:
            raise ConfigError(
                f"n-gram tables are {self.ngram.width} columns wide and cannot be split over "
                f"{self.tp_size} tensor-parallel ranks. Use a --tp-size that divides it."
            )
        self.columns = self.ngram.width // self.tp_size
        self.word_embed = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, use_attn_tp_group=self.use_attn_tp
        )
        self.tables = _frozen(sum(self.ngram.rows), self.columns)
        self.projection = _frozen(self.ngram.tables * self.columns, config.hidden_size)
        self.cache = NgramCache(config, device=self.tables.device)
        self.share = 1.0 / (1 + self.ngram.tables)

    def forward(self, input_ids: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        ids = self.cache.ids(input_ids, forward_batch)
        rows = functional.embedding(ids, self.tables).flatten(1)
        word = self.word_embed._embed_local_shard(input_ids)
        partial = torch.addmm(word, rows, self.projection, beta=self.share, alpha=self.share)
        return self._complete(partial)

    def _complete(self, partial: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks that own slices; if its input is scattered, the first layer sums."""
        if self.tp_size == 1 or not partial.numel() or get_attn_tp_context().input_scattered:
            return partial
        if self.use_attn_tp:
            return attn_tp_all_reduce(partial)
        return tensor_model_parallel_all_reduce(partial)

    def load_table(self, index: int, weight: torch.Tensor) -> None:
        """weight: [rows[index], width] as in the checkpoint."""
        first = sum(self.ngram.rows[:index])
        own = self.tables.data[first : first + self.ngram.rows[index]]
        # A column slice is copied through a contiguous buffer on the host: 512 MB at a time
        # instead of up to 2.6 GB of a 5.2 GB table.
        blocks = zip(own.split(_BLOCK_ROWS), weight.split(_BLOCK_ROWS), strict=True)
        for target, source in blocks:
            target.copy_(source[:, self._slice()])

    def load_projection(self, index: int, weight: torch.Tensor) -> None:
        """weight: [hidden, width] as in the checkpoint."""
        rows = slice(index * self.columns, (index + 1) * self.columns)
        self.projection.data[rows].copy_(weight[:, self._slice()].t())

    def _slice(self) -> slice:
        return slice(self.tp_rank * self.columns, (self.tp_rank + 1) * self.columns)


def _frozen(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)
