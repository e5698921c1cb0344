"""One shortcut-connected layer: two attentions and two dense MLPs beside one expert mixture.

    h = x + attention_0(norm(x));    m = experts(norm(h))                  (paper section 3, ScMoE)
    h = h + mlp_0(norm(h));          h = h + attention_1(norm(h))
    y = h + mlp_1(norm(h)) + m

Owns the order of the parts, which norm feeds which layer, and how a layer ends. SGLang's layer
boundaries move rows and sum over ranks between the stages; `branches` decides what runs at the same
time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from sglang.srt.layers.layer_boundary import append_stages, declare_attn, declare_ffn
from sglang.srt.runtime_context import get_stream
from sglang.srt.utils import add_prefix
from torch import nn

from sglang_longcat import env
from sglang_longcat.layers.attention import LongcatAttention
from sglang_longcat.layers.branches import run_branches
from sglang_longcat.layers.deferred_sum import (
    assert_consumed,
    assert_deferred,
    defer,
    use_deferred_sum,
)
from sglang_longcat.layers.linear import LongcatMLP, install_small_linear, reads_pair
from sglang_longcat.layers.moe import LongcatMoE, Mixture, kv_slots
from sglang_longcat.layers.norm import StageNorm
from sglang_longcat.layers.sum_groups import is_adding_rank, share_one_sum

if TYPE_CHECKING:
    from sglang.srt.configs import LongcatFlashConfig
    from sglang.srt.layers.layer_boundary import StageBoundary
    from sglang.srt.layers.quantization.base_config import QuantizationConfig
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.utils import BumpAllocator

    from sglang_longcat.config import LongcatConfig


def mla_attention(
    config: LongcatFlashConfig,
    lite: LongcatConfig,
    quant_config: QuantizationConfig | None,
    index: int,
    prefix: str,
) -> LongcatAttention:
    """MLA with the sizes of `lite`, as layer `index` of the KV pool. SGLang's class also needs its
    own `config`."""
    attention = LongcatAttention(
        config=config,
        hidden_size=lite.hidden_size,
        num_heads=lite.num_attention_heads,
        qk_nope_head_dim=lite.qk_nope_head_dim,
        qk_rope_head_dim=lite.qk_rope_head_dim,
        v_head_dim=lite.v_head_dim,
        q_lora_rank=lite.q_lora_rank,
        kv_lora_rank=lite.kv_lora_rank,
        rope_theta=lite.rope_theta,
        rope_scaling=dict(lite.rope_scaling) if lite.rope_scaling else None,
        max_position_embeddings=lite.max_position_embeddings,
        quant_config=quant_config,
        layer_id=index,
        reduce_results=False,
        prefix=prefix,
        alt_stream=get_stream("alt"),
    )
    latents = attention.fused_qkv_a_proj_with_mqa
    # SGLang's kernel for few tokens reads `weight`, which 4-bit layers do not have.
    attention.is_packed_weight = not hasattr(latents, "weight")
    install_small_linear(latents, attention.q_b_proj, attention.o_proj)
    return attention


class _AttentionList(nn.ModuleList):
    """SGLang's prefill graph looks for `self_attn.attn` in each layer. It accepts a list."""

    @property
    def attn(self) -> nn.ModuleList:
        return nn.ModuleList(cast(nn.Module, attention.attn_mqa) for attention in self)


class LongcatDecoderLayer(nn.Module):
    """Shortcut-connected MoE layer: two attentions and two dense MLPs beside one
    expert mixture."""

    def __init__(
        self,
        config: LongcatFlashConfig,
        lite: LongcatConfig,
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
                lite,
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
        """Tell each norm which layers read its result. The router is left out: it reads bf16."""
        latents: list[Any] = [attention.fused_qkv_a_proj_with_mqa for attention in self.self_attn]
        first, second = (partial(reads_pair, cast(Any, mlp).gate_up_proj) for mlp in self.mlps)
        readers = (
            *((partial(reads_pair, projection),) for projection in latents),
            (first, self.mlp.reads_pair),
            (second,),
        )
        norms = (*self.input_layernorm, *self.post_attention_layernorm)
        for norm, feeds in zip(norms, readers, strict=True):
            cast(StageNorm, norm).feed(*feeds)

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
            assert_consumed(read)
            if hidden.shape[0]:
                hidden = self.self_attn[index](
                    positions=positions,
                    hidden_states=hidden,
                    forward_batch=forward_batch,
                    zero_allocator=zero_allocator,
                )
            return boundary.finish(hidden, forward_batch)

        def dense_branch(hidden: torch.Tensor) -> torch.Tensor:
            hidden = self.first_ffn_boundary.branch_input(self.moe_boundary, hidden, forward_batch)
            hidden = self.first_ffn_boundary.finish(self.mlps[0](hidden), forward_batch)
            hidden = attend(1, self.second_attn_boundary, hidden)
            hidden = self.second_ffn_boundary.prepare(hidden, forward_batch)
            return cast(torch.Tensor, self.mlps[1](hidden))

        x = attend(0, self.attn_boundary, hidden_states)
        x = self.moe_boundary.prepare(x, forward_batch)
        adds_identity = is_adding_rank(self.moe_boundary, forward_batch)
        mixture, dense = run_branches(
            x,
            router=lambda: self.mlp.route(x, kv_slots(x, forward_batch)),
            experts=lambda routing: cast(Mixture, self.mlp(x, routing, adds_identity)),
            dense=lambda: dense_branch(x),
        )
        ends = LayerEnds(self.moe_boundary, self.second_ffn_boundary)
        return finish_layer(mixture, dense, ends, forward_batch), None


class LayerEnds(NamedTuple):
    """The boundaries behind the two branches."""

    mixture: StageBoundary
    dense: StageBoundary


def finish_layer(
    mixture: Mixture, dense: torch.Tensor, boundaries: LayerEnds, forward_batch: ForwardBatch
) -> Any:
    """The layer's output: what the next stage reads, by the cheapest of three ways."""
    if not share_one_sum(*boundaries, forward_batch):
        # Separate sums. The branches have other rows or other ranks to sum over (attention DP, or
        # experts over a part of the ranks), so each is summed by itself.
        hidden = boundaries.dense.finish(dense, forward_batch)
        contribution = boundaries.mixture.branch_output(mixture.sum(), forward_batch)
        return boundaries.mixture.merge_branch(
            contribution, hidden, boundaries.dense, forward_batch
        )
    if use_deferred_sum(mixture, forward_batch):
        # Deferred sum. The next norm adds the mixture, which is one kernel less a layer.
        hidden = boundaries.dense.finish(defer(mixture, dense), forward_batch)
        assert_deferred(hidden)
        return hidden
    # Joint sum. The branches are added first, which is one all-reduce less a layer.
    return boundaries.dense.finish(mixture.sum(dense), forward_batch)
