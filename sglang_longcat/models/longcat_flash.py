"""LongCat-Flash-Lite for SGLang: the model, top to bottom.

Registered under the name that SGLang resolves for every LongCat-Flash config, so `__new__` hands
any config that is not Lite to SGLang's own class. Attention over many tokens, norms, layer
boundaries, expert GEMMs and logits are SGLang's; embedding, dense MLP, expert mixture and what MLA
does before it attends are ours (`layers/`), loading is in `weights.py`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder
from sglang.srt.layers.layer_boundary import (
    append_stages,
    declare_attn,
    declare_ffn,
    layer_stack,
)
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.models import longcat_flash as upstream
from sglang.srt.runtime_context import get_parallel, get_server_args, get_spec, get_stream
from sglang.srt.utils import BumpAllocator, add_prefix
from torch import nn

from sglang_longcat import env, hooks, metrics, plugin
from sglang_longcat.config import LongcatConfig
from sglang_longcat.layers.attention import LongcatAttention
from sglang_longcat.layers.fp8 import prefer_pairs
from sglang_longcat.layers.fused_sums import SumNorm, final_norm
from sglang_longcat.layers.linear import LongcatMLP, prefer_kernels
from sglang_longcat.layers.moe import LongcatMoE, Mixture
from sglang_longcat.layers.ngram_embedding import NgramEmbedding
from sglang_longcat.layers.norm import StageNorm
from sglang_longcat.models.branch import beside, prepare_streams
from sglang_longcat.models.reduction import adds_once, sums_together
from sglang_longcat.models.unsupported import refuse_unsupported
from sglang_longcat.weights import CheckpointReader, DraftReader

if TYPE_CHECKING:
    from sglang.srt.configs import LongcatFlashConfig
    from sglang.srt.layers.layer_boundary import StageBoundary
    from sglang.srt.layers.quantization.base_config import QuantizationConfig
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_longcat.ngram.seeds import Cells, Seeds

logger = logging.getLogger(__name__)


def mla_attention(
    config: LongcatFlashConfig, quant_config: QuantizationConfig | None, index: int, prefix: str
) -> LongcatAttention:
    """MLA with the sizes of `config`, as the KV pool's layer `index`."""
    sizes = LongcatConfig.from_dict(config.to_dict())
    attention = LongcatAttention(
        config=config,
        hidden_size=sizes.hidden_size,
        num_heads=sizes.num_attention_heads,
        qk_nope_head_dim=sizes.qk_nope_head_dim,
        qk_rope_head_dim=sizes.qk_rope_head_dim,
        v_head_dim=sizes.v_head_dim,
        q_lora_rank=sizes.q_lora_rank,
        kv_lora_rank=sizes.kv_lora_rank,
        rope_theta=sizes.rope_theta,
        rope_scaling=dict(sizes.rope_scaling) if sizes.rope_scaling else None,
        max_position_embeddings=sizes.max_position_embeddings,
        quant_config=quant_config,
        layer_id=index,
        reduce_results=False,
        prefix=prefix,
        alt_stream=get_stream("alt"),
    )
    # Not the fused q_a and kv_a projection, for which SGLang has a kernel of its own.
    prefer_kernels(attention.q_b_proj, attention.o_proj)
    prefer_pairs(attention.fused_qkv_a_proj_with_mqa, attention.q_b_proj)
    return attention


def _check_draft(sizes: LongcatConfig, path: str) -> None:
    """Miss the draft's tensors before the target's 128 GB are read, not after."""
    args = get_server_args()
    if (args.speculative_algorithm or "").upper() in ("NEXTN", "EAGLE"):
        DraftReader(sizes, args.speculative_draft_model_path or path).check_files()


class _AttentionList(nn.ModuleList):
    """SGLang's prefill graph looks for `self_attn.attn` in each layer, and takes a list of them."""

    @property
    def attn(self) -> nn.ModuleList:
        return nn.ModuleList(cast(nn.Module, attention.attn_mqa) for attention in self)


class LongcatDecoderLayer(nn.Module):
    """Shortcut-connected MoE layer: two attentions and two dense MLPs beside one expert mixture."""

    def __init__(
        self,
        config: LongcatFlashConfig,
        layer_id: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        self.layer_id = layer_id
        unquantised = getattr(config, "disable_quant_module", None) or ()
        attention_quant = None if "self_attn" in unquantised else quant_config
        mlp_quant = None if "mlps" in unquantised else quant_config
        attentions = _AttentionList if env.prefill_graph() else nn.ModuleList
        self.self_attn = attentions(
            mla_attention(
                config, attention_quant, layer_id * 2 + i, add_prefix(f"self_attn.{i}", prefix)
            )
            for i in range(2)
        )
        self.input_layernorm, self.post_attention_layernorm = (
            nn.ModuleList(StageNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(2))
            for _ in range(2)
        )
        self.mlps = nn.ModuleList(
            LongcatMLP(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                hidden_act=config.hidden_act,
                quant_config=mlp_quant,
                prefix=add_prefix(f"mlps.{i}", prefix),
            )
            for i in range(2)
        )
        self.mlp = LongcatMoE(
            config=config,
            layer_id=layer_id,
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
        )
        self._feed_norms()
        self._declare_stages()

    def _feed_norms(self) -> None:
        """Tell the norms who reads them; the router reads bf16."""
        consumers: tuple[tuple[Any, ...], ...] = (
            *((attention.fused_qkv_a_proj_with_mqa,) for attention in self.self_attn),
            (self.mlps[0].gate_up_proj, self.mlp.experts),
            (self.mlps[1].gate_up_proj,),
        )
        norms = (*self.input_layernorm, *self.post_attention_layernorm)
        for norm, layers in zip(norms, consumers, strict=True):
            cast(StageNorm, norm).feed(*layers)

    def _declare_stages(self) -> None:
        """The order in which SGLang's layer boundaries move rows, add residuals and reduce."""
        latent = [{"qkv_latent_func": attention.prepare_qkv_latent} for attention in self.self_attn]
        before, after = self.input_layernorm, self.post_attention_layernorm
        self.attn_boundary, self.moe_boundary = append_stages(
            (declare_attn(), before[0], latent[0]),
            (declare_ffn(sparse=True, next_layer_sparse=True), after[0]),
        )
        self.first_ffn_boundary, self.second_attn_boundary, self.second_ffn_boundary = (
            append_stages(
                (declare_ffn(), after[0]),
                (declare_attn(), before[1], latent[1]),
                (declare_ffn(), after[1]),
                prepared_from=self.moe_boundary.declaration,
            )
        )

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        forward_batch: ForwardBatch,
        zero_allocator: BumpAllocator,
        prev_topk_indices: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        def attend(index: int, boundary: StageBoundary, hidden: torch.Tensor) -> torch.Tensor:
            hidden = boundary.prepare(hidden, forward_batch)
            if hidden.shape[0]:
                hidden = self.self_attn[index](
                    positions=positions,
                    hidden_states=hidden,
                    forward_batch=forward_batch,
                    zero_allocator=zero_allocator,
                )
            return boundary.finish(hidden, forward_batch)

        def dense(hidden: torch.Tensor) -> torch.Tensor:
            hidden = self.first_ffn_boundary.branch_input(self.moe_boundary, hidden, forward_batch)
            hidden = self.first_ffn_boundary.finish(self.mlps[0](hidden), forward_batch)
            hidden = attend(1, self.second_attn_boundary, hidden)
            hidden = self.second_ffn_boundary.prepare(hidden, forward_batch)
            return cast(torch.Tensor, self.mlps[1](hidden))

        x = attend(0, self.attn_boundary, hidden_states)
        x = self.moe_boundary.prepare(x, forward_batch)
        adds_identity = adds_once(self.moe_boundary, forward_batch)
        mixture, hidden_states = beside(
            x,
            urgent=lambda: self.mlp.route(x),
            wide=lambda routing: cast(Mixture, self.mlp(x, routing, adds_identity)),
            chain=lambda: dense(x),
        )
        together = sums_together(self.moe_boundary, self.second_ffn_boundary, forward_batch)
        if together:
            hidden_states = mixture.sum(hidden_states)
        hidden_states = self.second_ffn_boundary.finish(hidden_states, forward_batch)
        if not together:
            contribution = self.moe_boundary.branch_output(mixture.sum(), forward_batch)
            hidden_states = self.moe_boundary.merge_branch(
                contribution, hidden_states, self.second_ffn_boundary, forward_batch
            )
        return hidden_states, None


class LongcatModel(upstream.LongcatFlashModel):
    """Embedding, layers and final norm."""

    def __init__(
        self,
        config: LongcatFlashConfig,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        nn.Module.__init__(self)
        self.vocab_size = config.vocab_size
        self.use_ngram_embedding = True
        prepare_streams()
        with layer_stack():
            self.layers = nn.ModuleList(
                LongcatDecoderLayer(config, i, quant_config, add_prefix(f"layers.{i}", prefix))
                for i in range(config.num_hidden_layers)
            )
        # After the layers: where the tables go depends on what these leave free.
        self.embed_tokens = NgramEmbedding(LongcatConfig.from_dict(config.to_dict()))
        self.norm = SumNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        input_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Not SGLang's, whose sums at both ends of the stack are launches of their own."""
        residual_batch.start(forward_batch)
        hidden = input_embeds
        if hidden is None:
            hidden = self.embed_tokens(input_ids, forward_batch)
        zeros = BumpAllocator(2 * len(self.layers), torch.float32, positions.device)
        for index, layer in enumerate(self.layers):
            with get_global_expert_distribution_recorder().with_current_layer(index):
                hidden, _ = layer(positions, hidden, forward_batch, zeros)
        return final_norm(hidden, forward_batch, self.norm)


class LongcatFlashForCausalLM(upstream.LongcatFlashForCausalLM):
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
        if get_parallel().tp_rank == 0:
            plugin.log_activation()
        self.sizes = LongcatConfig.from_dict(config.to_dict())
        refuse_unsupported(get_server_args())
        self.reader = CheckpointReader(self.sizes, config._name_or_path)
        self.reader.check_files()
        _check_draft(self.sizes, config._name_or_path)
        # The MLA norm factors are applied while loading; SGLang's post_load_weights multiplies the
        # parameters in place and would do so again on every weight update.
        self.config = copy.copy(config)
        self.config.mla_scale_q_lora = self.config.mla_scale_kv_lora = False
        self.quant_config = quant_config
        self.fuse_qkv_a_proj = True
        self.packed_modules_mapping = {
            "fused_qkv_a_proj_with_mqa": ["q_a_proj", "kv_a_proj_with_mqa"]
        }
        self.use_ngram_embedding = False  # for upstream's loader: the reader feeds our embedding
        self.capture_aux_hidden_states = False
        self.model = LongcatModel(config, quant_config, prefix=add_prefix("model", prefix))
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            prefix=add_prefix("lm_head", prefix),
            use_attn_tp_group=get_parallel().enable_dp_lm_head,
        )
        self.logits_processor = LogitsProcessor(config)
        self.arrivals: Cells = {}

    @property
    def ngram_order(self) -> int:
        assert self.sizes.ngram is not None
        return self.sizes.ngram.n

    def allocate_cache(self, slots: int, context: int) -> None:
        size = self.model.embed_tokens.cache.allocate(slots)
        metrics.publish_bytes(part="cache", place="device", size=size)
        logger.info(
            "N-gram cache: %d request slots, %.1f KiB (in-tree token table: %.1f MiB)",
            slots,
            size / 2**10,
            slots * context * 4 / 2**20,
        )

    def note_arrivals(self, cells: Cells) -> None:
        """Seeds of requests that came with their KV, for the next forward."""
        self.arrivals |= cells

    def take_arrivals(self) -> Cells:
        arrivals, self.arrivals = self.arrivals, {}
        return arrivals

    def prepare_for_forward(self, forward_batch: ForwardBatch) -> None:
        """Called by ModelRunner before every forward, eager or replayed, on the forward stream."""
        seeds: Seeds | None = forward_batch.__dict__.get("longcat_seeds")
        self.model.embed_tokens.cache.seed(seeds)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights(self.reader.feed(self.model.embed_tokens, weights))
        self.model.embed_tokens.tables.finish_load()

    def get_embed_and_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the draft shares. With --speculative-token-map SGLang then picks rows by token id,
        so it gets the whole head; the draft keeps what it picked (`longcat_flash_nextn`)."""
        parallel, head = get_parallel(), self.lm_head.weight
        if get_spec().speculative_token_map is not None and self.lm_head.tp_size > 1:
            by_dp = parallel.enable_dp_lm_head
            group = parallel.attn_tp_group if by_dp else parallel.tp_group
            head = group.all_gather(head, dim=0)[: self.config.vocab_size]
        return self.model.embed_tokens.word_embed.weight, head


EntryClass = [LongcatFlashForCausalLM]
