"""SGLang's fa3 backend over a pool of FP8 rows.

Prefill is SGLang's: heads of its own K and V, whose latents the pool rounds as it stores them, and
those of a cached prefix from rows that the pool widens. `dispatch_attn_forward_method` of
`LongcatAttention` keeps prefill on that path. Absorbed attention (decode steps, verify windows, the
draft's steps) reads the rows with `longcat_kernels.mla_decode`.

Why: SGLang's absorbed paths (flashattention_backend.py, the calls of get_key_buffer in
forward_extend and forward_decode) convert the layer's whole buffer to the queries' type.
Remove when: SGLang's fa3 reads FP8 rows with scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.flashattention_backend import (
    FlashAttentionBackend,
    FlashAttentionMultiStepBackend,
)
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import pad

from longcat_kernels.mla_decode import mla_decode, supports

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

WIDEST = 256  # tokens of a window; a verify window has 13 at most


class Fp8RowBackend(FlashAttentionBackend):
    """Arguments are those of SGLang's class. Queries of absorbed attention come as [T, H, rank] and
    [T, H, rope], or as both side by side."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pool = self.token_to_kv_pool
        if not supports(pool.kv_lora_rank, pool.qk_rope_head_dim):
            raise ValueError(
                f"an FP8 KV cache of {pool.kv_lora_rank} + {pool.qk_rope_head_dim} values: "
                "expected powers of two from 16 on. Leave --kv-cache-dtype out."
            )
        self.keys_after = torch.arange(WIDEST, 0, -1, device=self.device)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        q_rope: torch.Tensor | None = None,
        k_rope: torch.Tensor | None = None,
        **_others: Any,
    ) -> torch.Tensor:
        if k is not None and save_kv_cache:
            slots = KVWriteLoc.for_layer(forward_batch, layer)
            self.token_to_kv_pool.set_mla_kv_buffer(layer, slots, k, k_rope)
        return self._attend(q, q_rope, layer, forward_batch)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **others: Any,
    ) -> Any:
        mode = forward_batch.forward_mode
        if mode.is_target_verify() or mode.is_draft_extend_v2():
            arguments = q, k, v, layer, forward_batch, save_kv_cache
            return self.forward_decode(*arguments, **others)
        if forward_batch.attn_attend_prefix_cache is None:
            raise RuntimeError(
                f"layer {layer.layer_id}: an absorbed prefill would read the KV cache, whose rows "
                "are FP8. Leave --kv-cache-dtype out, and report the flags of this server."
            )
        return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **others)

    def _attend(
        self,
        q: torch.Tensor,
        q_rope: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
    ) -> torch.Tensor:
        tokens, rank = q.shape[0], layer.v_head_dim
        width = self.forward_metadata.max_seq_len_q  # of every request's window
        requests = forward_batch.req_pool_indices[: tokens // width]
        real = requests.shape[0] * width  # attention DP may add rows that belong to no request
        positions = self._positions(requests.shape[0], width)
        query = _side_by_side(q, q_rope, layer)[:real]
        out = mla_decode(
            query[..., :rank],
            query[..., rank:],
            self.token_to_kv_pool.rows(layer.layer_id)[:, 0],
            self.req_to_token,
            requests,
            positions,
            scale=layer.scaling,
            width=width,
        ).flatten(1)
        return out if real == tokens else pad(out, (0, 0, 0, tokens - real))

    def _positions(self, requests: int, width: int) -> torch.Tensor:
        """Of each token of the step's windows, [requests * width] int64: the last one sees all keys
        that SGLang counts for its request. A draft step's own positions may run behind."""
        lengths = self.forward_metadata.cache_seqlens_int32[:requests, None]
        positions = (lengths - self.keys_after[WIDEST - width :]).flatten()
        # Requests that only fill up a batch have one key, and their windows may be wider.
        return positions if width == 1 else positions.clamp_(min=0)


def _side_by_side(
    q: torch.Tensor, q_rope: torch.Tensor | None, layer: RadixAttention
) -> torch.Tensor:
    """[T, H, rank + rope], always a new tensor: `mla_decode` starts under the tail of the kernel
    before it, which therefore may write neither KV rows nor positions, but queries alone."""
    heads, rank = layer.tp_q_head_num, layer.v_head_dim
    if q_rope is None:
        return q.view(-1, heads, layer.head_dim).clone()
    return torch.cat((q.view(-1, heads, rank), q_rope.view(-1, heads, layer.head_dim - rank)), -1)


class Fp8RowDraftSteps(FlashAttentionMultiStepBackend):
    """A backend for each decode step of the draft, as SGLang's class has them."""

    def __init__(self, runner: ModelRunner, topk: int, speculative_num_steps: int) -> None:
        super().__init__(runner, topk, speculative_num_steps)
        self.attn_backends = [
            Fp8RowBackend(
                runner,
                speculative_step_id=step,
                topk=topk,
                speculative_num_steps=speculative_num_steps,
            )
            for step in range(speculative_num_steps - 1)
        ]
        self.attn_backend_list = self.attn_backends
