"""Multi-head latent attention whose decode and verify steps launch fewer kernels.

SGLang's absorbed path norms two latents, projects, multiplies by w_kc, rotates, and lets the
attention backend store the token's KV row: five launches beside the two projections, on two
streams. Our prologue replaces these five by two (`longcat_kernels.mla_prologue`). Steps of few
requests also attend, and multiply by w_vc, with our kernels (`longcat_kernels.mla_decode`). Owns
which steps use which kernels. Projections, attention in all other steps, and weights are SGLang's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from sglang.srt.layers.layer_boundary import get_attn_tp_context
from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool
from sglang.srt.model_executor.forward_context import (
    get_req_to_token_pool,
    get_token_to_kv_pool,
)
from sglang.srt.models.deepseek_common.attention_backend_handler import _support_mha_one_shot
from sglang.srt.models.deepseek_common.attention_forward_methods import AttnForwardMethod
from sglang.srt.models.deepseek_v2 import DeepseekV2AttentionMLA
from sglang.srt.runtime_context import process_model_config

from longcat_kernels.dispatch import is_hopper
from longcat_kernels.mla_decode import (
    gives_pair,
    is_faster,
    mla_decode,
    mla_decode_pair,
    project_values,
    supports,
)
from longcat_kernels.mla_prologue import absorb_query, norm_and_store, norm_quantise_and_store
from longcat_kernels.small_linear import linear
from sglang_longcat import env
from sglang_longcat.kv_cache.pool import Fp8RowPool, rows_of
from sglang_longcat.layers.linear import reads_pair, use_small_linear, weight_of
from sglang_longcat.layers.operations import is_enabled
from sglang_longcat.layers.step import is_decode_or_verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from longcat_kernels.fp8_layout import Pair

# These backends attend to the pool's rows alone and take queries with both parts side by side.
# Others read the batch's own keys while they verify (triton), or rotate by themselves (trtllm_mla).
BACKENDS = ("flashinfer", "fa3", "flashmla")


@dataclass(frozen=True)
class Prepared:
    """What `forward_absorb_prepare` hands to `forward_absorb_core` when our prologue ran: the KV
    rows are stored already."""

    query: torch.Tensor  # [T, heads, kv_lora_rank + rope], contiguous
    forward_batch: ForwardBatch


class LongcatAttention(DeepseekV2AttentionMLA):
    """Weights, arguments and results are those of SGLang's class."""

    is_draft = False  # True in the MTP layer

    def dispatch_attn_forward_method(self, forward_batch: ForwardBatch) -> AttnForwardMethod:
        """SGLang's choice, but a prefill never absorbs over FP8 rows: it widens its prefix's rows,
        however short that is. SGLang absorbs below SGLANG_CHUNKED_PREFIX_CACHE_THRESHOLD."""
        method = super().dispatch_attn_forward_method(forward_batch)
        if not widens_prefix(self, forward_batch, method):
            return method
        if _support_mha_one_shot(self, forward_batch, self.current_attention_backend):
            return AttnForwardMethod.MHA_ONE_SHOT
        return AttnForwardMethod.MHA_CHUNKED_KV

    def prepare_qkv_latent(
        self, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:
        """The first projection. SGLang has a kernel of its own for up to 16 tokens. It fills each
        SM's shared memory, so beside the experts it waits for room."""
        projection = self.fused_qkv_a_proj_with_mqa
        if use_small_linear(projection, hidden_states):
            return linear(hidden_states, *weight_of(projection))
        return cast(torch.Tensor, super().prepare_qkv_latent(hidden_states, forward_batch))

    def forward_absorb_prepare(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        forward_batch: ForwardBatch,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        if not use_mla_prologue(self, positions, forward_batch):
            return cast(
                tuple[Any, ...],
                super().forward_absorb_prepare(
                    positions, hidden_states, forward_batch, *args, **kwargs
                ),
            )
        return (Prepared(self._prologue(positions, forward_batch), forward_batch),)

    def forward_absorb_core(self, *state: Any) -> torch.Tensor:
        if not isinstance(state[0], Prepared):
            return cast(torch.Tensor, super().forward_absorb_core(*state))
        return self._attend(state[0].query, state[0].forward_batch)

    def _prologue(self, positions: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        """Store the KV rows and return the queries."""
        rope = self.rotary_emb
        angles = {"positions": positions, "cos_sin": rope.cos_sin_cache, "neox": rope.is_neox_style}
        latent = get_attn_tp_context().fetch_qkv_latent()
        fused = reads_pair(self.q_b_proj, latent) and is_enabled("fp8_query")
        store: Callable[..., torch.Tensor | Pair] = (
            norm_quantise_and_store if fused else norm_and_store
        )
        q_lora = store(
            latent,
            self.q_a_layernorm.weight,
            self.kv_a_layernorm.weight,
            eps=self.q_a_layernorm.variance_epsilon,
            slots=forward_batch.out_cache_loc,
            kv_buffer=rows_of(get_token_to_kv_pool(), self.layer_id),
            **angles,
        )
        return absorb_query(self.q_b_proj_forward(q_lora), self.w_kc, **angles)

    def _attend(self, query: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        if use_mla_decode(self, query, forward_batch):
            values = self._attend_split(query, forward_batch)
        else:
            latent = self.attn_mqa(query, None, None, forward_batch, save_kv_cache=False)
            shape = query.shape[0], self.num_local_heads, self.kv_lora_rank
            values = project_values(latent.view(shape), self.w_vc).flatten(1)
        return cast(torch.Tensor, self.o_proj(values)[0])

    def _attend_split(
        self, query: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor | Pair:
        """The input of the output projection, a pair if that takes one and the kernel gives one."""
        requests = forward_batch.req_pool_indices
        arguments = (
            query[..., : self.kv_lora_rank],
            query[..., self.kv_lora_rank :],
            rows_of(get_token_to_kv_pool(), self.layer_id)[:, 0],
            get_req_to_token_pool().req_to_token,
            requests,
            forward_batch.positions.long(),
        )
        options = {
            "scale": self.attn_mqa.scaling,
            "width": query.shape[0] // max(1, requests.shape[0]),
            "w_vc": self.w_vc,
        }
        if use_value_pair(self, query):
            return mla_decode_pair(*arguments, **options)
        return mla_decode(*arguments, **options).flatten(1)


def use_value_pair(attention: LongcatAttention, query: torch.Tensor) -> bool:
    """Whether our attention quantises its values for the output projection, which saves a launch of
    its own."""
    return (
        gives_pair(query.shape[0], attention.v_head_dim)
        and reads_pair(attention.o_proj, query.flatten(1))
        and is_enabled("fp8_values")
    )


def widens_prefix(
    attention: LongcatAttention, forward_batch: ForwardBatch, method: AttnForwardMethod
) -> bool:
    """Whether a prefill that SGLang would absorb has to widen rows instead. On a CPU our backend
    reads FP8 rows in every step."""
    return (
        method is AttnForwardMethod.MLA
        and forward_batch.forward_mode.is_extend_without_speculative()
        and attention.current_attention_backend == "fa3"
        and isinstance(get_token_to_kv_pool(), Fp8RowPool)
    )


def use_mla_prologue(
    attention: LongcatAttention, positions: torch.Tensor, forward_batch: ForwardBatch
) -> bool:
    """Whether this step of this layer runs our two launches. LoRA is refused at start."""
    return (
        _step_suits_prologue(attention, positions, forward_batch)
        and _weights_suit_prologue(attention)
        and _pool_suits_prologue()
        and is_enabled("mla_prologue")
    )


def _step_suits_prologue(
    attention: LongcatAttention, positions: torch.Tensor, forward_batch: ForwardBatch
) -> bool:
    """A decode or verify step on a GPU, to which the backend attends through the pool alone. A
    draft's extend step may read the batch's own keys (flashinfer, without a prefix), and a prefill
    is not bound by launches. Each token has a slot; data-parallel padding may leave fewer slots."""
    return (
        is_decode_or_verify(forward_batch)
        and attention.current_attention_backend in BACKENDS
        and positions.is_cuda
        and positions.shape == forward_batch.out_cache_loc.shape
    )


def _weights_suit_prologue(attention: LongcatAttention) -> bool:
    """Rotary positions, no context parallelism, and bf16 products: w_kc, w_vc are dequantised."""
    return (
        attention.rotary_emb is not None
        and attention.dcp_size == 1
        and not attention.use_deep_gemm_bmm
        and attention.w_kc.dtype == attention.w_vc.dtype == torch.bfloat16
    )


def _pool_suits_prologue() -> bool:
    """SGLang's plain bf16 pool, whose layer buffers are [slots, 1, rank + rope], or our FP8 rows of
    bf16 values."""
    pool = get_token_to_kv_pool()
    return type(pool) in (MLATokenToKVPool, Fp8RowPool) and pool.dtype == torch.bfloat16


def use_mla_decode(
    attention: LongcatAttention, query: torch.Tensor, forward_batch: ForwardBatch
) -> bool:
    """Whether a step with our prologue also attends with our kernel (LONGCAT_SPLIT_ATTENTION).

    The kernel reads a request's keys in the order of its page table, as many as its position says.
    In a draft step the two can differ, and only the step's backend knows. No other kernel reads FP8
    rows: without this the backend would call the same one, after copies of its own.
    """
    if attention.is_draft or not is_decode_or_verify(forward_batch):
        return False
    if isinstance(get_token_to_kv_pool(), Fp8RowPool):
        return True
    if not (
        supports(attention.kv_lora_rank, attention.qk_rope_head_dim) and is_enabled("mla_decode")
    ):
        return False
    tokens = query.shape[0]
    if (most := env.split_attention()) is not None:
        return tokens <= most
    # One H200, us with w_vc, ours against flashinfer's with the product. Batch 1 with 1K, 4K, 16K,
    # 32K and 128K cached tokens: 8.6 and 20.7, 10.6 and 22.9, 17.3 and 34.8, 22.5 and 52.6, 51.1
    # and 81.5. Batch 2, 4, 8 and 16 with 4K: 13.1 and 22.8, 17.9 and 24.4, 28.5 and 28.0, 38.7 and
    # 36.7. fa3 takes 5 more than flashinfer, so an engine's step at batch 8 takes 5.92 ms instead
    # of 6.04. A window of 4 tokens at 4K takes 16.3 and 23.7. Other GPUs have not been timed.
    requests = max(1, forward_batch.req_pool_indices.shape[0])
    faster = is_faster(requests, tokens // requests, process_model_config().context_len)
    return faster and is_hopper(query)
