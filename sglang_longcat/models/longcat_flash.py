"""LongCat-Flash-Lite for SGLang: the model, top to bottom.

The class has the name that SGLang resolves for every LongCat-Flash config, so `__new__` hands any
config that is not Lite to SGLang's own class. A layer is in `layers/decoder_layer.py`, its parts
are beside it, loading is in `checkpoint/reader.py`. Attention over many tokens, norms, layer
boundaries, expert GEMMs and logits are SGLang's.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import torch
from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder
from sglang.srt.layers.layer_boundary import layer_stack
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.models import longcat_flash as upstream
from sglang.srt.runtime_context import get_parallel, get_server_args, get_spec
from sglang.srt.utils import add_prefix
from torch import nn

from sglang_longcat import hooks, plugin
from sglang_longcat.checkpoint.reader import CheckpointReader
from sglang_longcat.config import LongcatConfig
from sglang_longcat.host import precompile
from sglang_longcat.host.refused_flags import refuse_contradictions, refuse_unsupported
from sglang_longcat.layers.allreduce_norm import final_norm
from sglang_longcat.layers.branches import prepare_streams
from sglang_longcat.layers.decoder_layer import LongcatDecoderLayer
from sglang_longcat.layers.deferred_sum import assert_consumed
from sglang_longcat.layers.lazy_allocator import LazyZeroAllocator
from sglang_longcat.layers.norm import FinalNorm
from sglang_longcat.layers.operations import enabled_operations
from sglang_longcat.layers.packed import prepare_reader, serving_config
from sglang_longcat.ngram.embedding import NgramEmbedding
from sglang_longcat.ngram.state import NgramStateMixin
from sglang_longcat.planning.plan import mtp_drafts
from sglang_longcat.speculation.draft_head import head_changed
from sglang_longcat.speculation.draft_reader import DraftReader

if TYPE_CHECKING:
    from sglang.srt.configs import LongcatFlashConfig
    from sglang.srt.layers.quantization.base_config import QuantizationConfig
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

logger = logging.getLogger(__name__)


def _check_draft(lite: LongcatConfig, path: str) -> None:
    """Detect missing tensors of the draft before the target's 128 GiB are read, not after."""
    args = get_server_args()
    if mtp_drafts(args.speculative_algorithm):
        DraftReader(lite, args.speculative_draft_model_path or path).check_files()


class LongcatModel(upstream.LongcatFlashModel):
    """Embedding, layers and final norm."""

    def __init__(
        self,
        config: LongcatFlashConfig,
        lite: LongcatConfig,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        nn.Module.__init__(self)
        self.vocab_size = config.vocab_size
        self.use_ngram_embedding = True  # SGLang's forward passes the batch to `embed_tokens`
        prepare_streams()
        precompile.start_cuda_modules(
            lite,
            shares_experts=get_parallel().moe_ep_size > 1,
            drafts=get_spec().speculative_algorithm is not None,
        )
        with layer_stack():
            self.layers = nn.ModuleList(
                LongcatDecoderLayer(
                    config, lite, i, quant_config, add_prefix(f"layers.{i}", prefix)
                )
                for i in range(config.num_hidden_layers)
            )
        precompile.start_deep_gemm(self.layers, lite.hidden_size)
        # After the layers, because the tables' place depends on the memory that these leave free.
        self.embed_tokens = NgramEmbedding(lite)
        self.norm = FinalNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Replaces SGLang's forward, which sums over ranks at both ends of the stack in launches of
        their own."""
        residual_batch.start(forward_batch)
        hidden = input_embeds
        if hidden is None:
            hidden = self.embed_tokens(input_ids, forward_batch)
        zeros = LazyZeroAllocator(2 * len(self.layers), positions.device)
        for index, layer in enumerate(self.layers):
            with get_global_expert_distribution_recorder().with_current_layer(index):
                hidden, _ = layer(positions, hidden, forward_batch, zeros)
        normed = final_norm(hidden, forward_batch, self.norm)
        assert_consumed(hidden)
        return normed


class LongcatFlashForCausalLM(NgramStateMixin, upstream.LongcatFlashForCausalLM):
    """The class that SGLang instantiates; configs that are not Lite get SGLang's own."""

    def __new__(cls, config: LongcatFlashConfig, *args: Any, **kwargs: Any) -> Self:
        if not getattr(config, "is_longcat_lite", False):  # a config class that is not ours
            logger.info("sglang-longcat: not a LongCat-Flash-Lite config, using SGLang's own model")
            return upstream.LongcatFlashForCausalLM(config, *args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        config: LongcatFlashConfig,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        nn.Module.__init__(self)
        hooks.verify()
        self.lite = LongcatConfig.from_dict(config.to_dict())
        if get_parallel().tp_rank == 0:
            plugin.log_activation(enabled_operations(self.lite))
        refuse_unsupported(get_server_args())
        stored = None if self.lite.quant is None else self.lite.quant.method
        refuse_contradictions(get_server_args(), stored)
        self.reader = CheckpointReader(self.lite, config._name_or_path)
        self.reader.check_files()
        _check_draft(self.lite, config._name_or_path)
        # The reader applies the MLA norm factors while loading. SGLang's post_load_weights would
        # multiply the parameters in place, and again on every weight update.
        self.config = copy.copy(config)
        self.config.mla_scale_q_lora = self.config.mla_scale_kv_lora = False
        quant_config = serving_config(self.lite, quant_config)
        self.quant_config = quant_config
        self.fuse_qkv_a_proj = True
        self.packed_modules_mapping = {
            "fused_qkv_a_proj_with_mqa": ["q_a_proj", "kv_a_proj_with_mqa"]
        }
        self.use_ngram_embedding = False  # SGLang's loader leaves the tables to our reader
        self.capture_aux_hidden_states = False
        self.model = LongcatModel(
            config, self.lite, quant_config, prefix=add_prefix("model", prefix)
        )
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            prefix=add_prefix("lm_head", prefix),
            use_attn_tp_group=get_parallel().enable_dp_lm_head,
        )
        self.logits_processor = LogitsProcessor(config)
        self.arrivals = {}
        precompile.start_triton(self.lite, self.embedding.tables.table)

    @property
    def embedding(self) -> NgramEmbedding:
        return self.model.embed_tokens

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        prepare_reader(self.reader, self.lm_head.weight.device)
        super().load_weights(self.reader.feed(self.embedding, weights))
        self.embedding.tables.finish_load()

    def post_load_weights(self, weight_names: list[str] | None = None) -> None:
        """Called after every load, with the names of an update (none: all may have changed)."""
        super().post_load_weights(weight_names)
        if weight_names is None or "lm_head.weight" in weight_names:
            head_changed(lambda: self.get_embed_and_head()[1])

    def get_embed_and_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The word table and head that the draft shares. With --speculative-token-map SGLang picks
        rows of the head by token id, so it needs the whole head here; the draft keeps the rows
        that were picked (`longcat_flash_nextn`)."""
        parallel, head = get_parallel(), self.lm_head.weight
        if get_spec().speculative_token_map is not None and self.lm_head.tp_size > 1:
            by_dp = parallel.enable_dp_lm_head
            group = parallel.attn_tp_group if by_dp else parallel.tp_group
            head = group.all_gather(head, dim=0)[: self.config.vocab_size]
        return self.embedding.word_embed.weight, head


EntryClass = [LongcatFlashForCausalLM]
