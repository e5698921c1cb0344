"""One shortcut-connected layer: two attentions and two dense MLPs beside one expert mixture.

    h = x + attention_0(norm(x));    m = experts(norm(h))                  (paper section 3, ScMoE)
    h = h + mlp_0(norm(h));          h = h + attention_1(norm(h))
    y = h + mlp_1(norm(h)) + m

Owns the order, and which norm feeds which layer; how rows move and sums are taken between stages is
SGLang's (`layer_boundary`), what runs beside what `branch`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from sglang.srt.layers.layer_boundary import append_stages, declare_attn, declare_ffn
from sglang.srt.runtime_context import get_stream
from sglang.srt.utils import add_prefix
from torch import nn

from sglang_longcat import env
from sglang_longcat.layers.attention import LongcatAttention
from sglang_longcat.layers.branches import beside
from sglang_longcat.layers.deferred_sum import leave, leaves_sum, must_be_paid, still_owed
from sglang_longcat.layers.fp8_inputs import prefer_pairs
from sglang_longcat.layers.linear import LongcatMLP, prefer_kernels
from sglang_longcat.layers.moe import LongcatMoE, Mixture, slots_of
from sglang_longcat.layers.norm import StageNorm
from sglang_longcat.layers.sum_groups import adds_once, sums_together

if TYPE_CHECKING:
    from sglang.srt.configs import LongcatFlashConfig
    from sglang.srt.layers.layer_boundary import StageBoundary
    from sglang.srt.layers.quantization.base_config import QuantizationConfig
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.utils import BumpAllocator

    from sglang_longcat.config import LongcatConfig


def mla_attention(
    config: LongcatFlashConfig,
    sizes: LongcatConfig,
    quant_config: QuantizationConfig | None,
    index: int,
    prefix: str,
) -> LongcatAttention:
    """MLA of `sizes`, as the KV pool's layer `index`; config: for SGLang's class."""
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
    latents = attention.fused_qkv_a_proj_with_mqa
    prefer_kernels(latents, attention.q_b_proj, attention.o_proj)
    prefer_pairs(latents, attention.q_b_proj)
    return attention


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
        sizes: LongcatConfig,
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
                config,
                sizes,
                attention_quant,
                layer_id * 2 + i,
                add_prefix(f"self_attn.{i}", prefix),
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
            read, hidden = hidden, boundary.prepare(hidden, forward_batch)
            must_be_paid(read)
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
            urgent=lambda: self.mlp.route(x, slots_of(x, forward_batch)),
            wide=lambda routing: cast(Mixture, self.mlp(x, routing, adds_identity)),
            chain=lambda: dense(x),
        )
        together = sums_together(self.moe_boundary, self.second_ffn_boundary, forward_batch)
        left = together and leaves_sum(mixture, forward_batch)
        if together:
            hidden_states = (leave if left else Mixture.sum)(mixture, hidden_states)
        hidden_states = self.second_ffn_boundary.finish(hidden_states, forward_batch)
        if left:
            still_owed(hidden_states)
        if not together:
            contribution = self.moe_boundary.branch_output(mixture.sum(), forward_batch)
            hidden_states = self.moe_boundary.merge_branch(
                contribution, hidden_states, self.second_ffn_boundary, forward_batch
            )
        return hidden_states, None
