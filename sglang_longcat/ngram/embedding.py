"""The N-gram embedding: 12 hashed rows per token, one projection, one word row, one all-reduce.

    x_t = (word[t] + sum_i W_i table_i[id_{t,i}]) / (1 + tables)        (paper section 3, eq. 3)

The rows of all tables together are as wide as the hidden size, so the sum of projections is one
[T, D] x [D, D] product of the concatenated rows. Each rank owns a column slice of every table and
the matching rows of the projection. Its product is a partial sum, and so is its word row, because
the vocabulary is split too. One all-reduce completes both. Owns projection and word embedding. The
look-up is in `cache.py`, the tables' storage in `tables.py`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.distributed import get_tp_group, tensor_model_parallel_all_reduce
from sglang.srt.layers.dp_attention import attn_tp_all_reduce, is_dp_attention_enabled
from sglang.srt.layers.layer_boundary import get_attn_tp_context
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph import (
    eager_on_graph,
    is_in_breakable_cuda_graph,
)
from sglang.srt.model_executor.runner_utils.forward_batch import get_forward_batch
from sglang.srt.runtime_context import get_parallel, get_schedule, get_server_args
from torch import nn

from longcat_kernels.lite import INT4_GROUP
from sglang_longcat import env, metrics
from sglang_longcat.config import ConfigError, LongcatConfig
from sglang_longcat.layers.allreduce_norm import defer_allreduce, use_allreduce_norm
from sglang_longcat.layers.constants import register_constant
from sglang_longcat.ngram.cache import NgramCache
from sglang_longcat.ngram.host_memory import available_bytes, require_room
from sglang_longcat.ngram.sharing import Sharers
from sglang_longcat.ngram.tables import NgramTables
from sglang_longcat.planning import placement, sizing
from sglang_longcat.planning.plan import (
    MachineMemory,
    MemoryFlags,
    device_room,
    draft_bytes,
    mtp_drafts,
)

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

logger = logging.getLogger(__name__)


class NgramEmbedding(nn.Module):
    """Input embedding of the whole model; `forward(ids [T], batch) -> [T, hidden]`, or a handle
    of a sum that the first norm completes (`allreduce_norm.defer_allreduce`)."""

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
        odd = self.columns % (INT4_GROUP if self.tp_size > 1 else 2)
        if env.ngram_table_dtype() == "int4" and odd:
            raise ConfigError(
                f"LONGCAT_NGRAM_TABLE_DTYPE=int4 keeps a scale for {INT4_GROUP} columns, and each "
                f"of {self.tp_size} ranks has {self.columns}. Use fp8, or fewer ranks."
            )
        self.word_embed = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, use_attn_tp_group=self.use_attn_tp
        )
        weight = self.word_embed.weight
        own = slice(self.tp_rank * self.columns, (self.tp_rank + 1) * self.columns)
        sharers = Sharers.find(get_tp_group().all_gather_object, parallel.tp_rank, own)
        self.tables = NgramTables(
            self.ngram.rows,
            own,
            dtype=weight.dtype,
            table_dtype=env.ngram_table_dtype(),
            where=self._place(config, weight.dtype, sharers),
            device=weight.device,
            show_progress=parallel.tp_rank == 0,
            sharers=sharers,
        )
        self.projection = nn.Parameter(
            torch.empty(self.ngram.tables * self.columns, config.hidden_size), requires_grad=False
        )
        self.cache = NgramCache(config, device=weight.device)
        for name, constant in vars(self.cache.hash).items():
            register_constant(self, f"hash_{name}", constant)
        self.mean_factor = 1.0 / (1 + self.ngram.tables)

    def _place(
        self, config: LongcatConfig, dtype: torch.dtype, sharers: Sharers
    ) -> placement.Where:
        """Chooses the tables' place, logs it, and checks the host's memory."""
        wish, room = env.ngram_tables(), self._room(config, dtype, sharers)
        if wish == "auto" and not self.word_embed.weight.is_cuda:
            wish = "host"  # the same memory on a CPU, without a parameter that SGLang counts
        where, why = placement.choose(wish, room)
        if get_parallel().tp_rank == 0:
            logger.info("%s", placement.describe(where, why, room))
            metrics.publish_bytes(part="tables", place=where, size=room.tables)
        if where == "host":
            require_room(room.tables_on_node, room.host)
        return where

    def _room(self, config: LongcatConfig, dtype: torch.dtype, sharers: Sharers) -> placement.Room:
        """The same on every rank, and measured on all of them before any allocates its tables. The
        layers are allocated by then; the head, as large as the word embedding, and the draft model
        are not."""
        args = get_server_args()
        drafts = mtp_drafts(args.speculative_algorithm)
        row = sizing.row_bytes(self.columns, dtype.itemsize, env.ngram_table_dtype())
        tables = sum(self.ngram.rows) * row
        room = 0  # a CPU has host memory only
        if self.word_embed.weight.is_cuda:
            free, total = torch.cuda.mem_get_info()
            flags = MemoryFlags(mem_fraction=get_schedule().mem_fraction_static)
            memory = MachineMemory(gpu_total=total, gpu_free=free)
            draft = draft_bytes(config, tp=args.tp_size, attention_dp=args.attn_dp_size) * drafts
            room = device_room(memory, flags, weights=self.word_embed.weight.nbytes + draft)
        devices, hosts = zip(*sharers.exchange((room, available_bytes())), strict=True)
        kv_bytes = sizing.kv_bytes_per_token(
            config,
            sizing.kv_dtype(args.kv_cache_dtype),
            draft=drafts,
            value_bytes=dtype.itemsize,
        )
        return placement.Room(
            tables=tables,
            tables_on_node=tables * sharers.copies,
            device=min(devices),
            host=min(hosts),
            kv_bytes_per_token=kv_bytes,
            tokens_wanted=max(
                args.context_length or config.max_position_embeddings, args.max_total_tokens or 0
            ),
        )

    def forward(self, input_ids: torch.Tensor, forward_batch: ForwardBatch) -> Any:
        rows = (
            self._rows_between_segments(input_ids)
            if is_in_breakable_cuda_graph()
            else self.cache.rows(input_ids, forward_batch, self.tables.table)
        )
        word = self.word_embed._embed_local_shard(input_ids)
        partial = torch.addmm(
            word, rows, self.projection, beta=self.mean_factor, alpha=self.mean_factor
        )
        return self._complete(partial, forward_batch)

    @eager_on_graph
    def _rows_between_segments(self, input_ids: torch.Tensor) -> torch.Tensor:
        """A prefill graph is captured with one request. This runs between the graph's segments, so
        it sees the requests of each replay. `input_ids` are padded with zeros."""
        return self.cache.rows(input_ids, get_forward_batch(), self.tables.table)

    def _complete(self, partial: torch.Tensor, forward_batch: ForwardBatch) -> Any:
        """Sum over the ranks that own slices. If the layers' input is scattered, the first layer
        sums; where sum and norm are one kernel, its norm does."""
        if self.tp_size == 1 or not partial.numel() or get_attn_tp_context().input_scattered:
            return partial
        if self.use_attn_tp:
            return attn_tp_all_reduce(partial)
        if use_allreduce_norm(partial):
            return defer_allreduce(partial, forward_batch)
        return tensor_model_parallel_all_reduce(partial)

    def load_projection(self, index: int, weight: torch.Tensor) -> None:
        """weight: [hidden, width] as in the checkpoint."""
        rows = slice(index * self.columns, (index + 1) * self.columns)
        self.projection.data[rows].copy_(weight[:, self.tables.columns].t())
