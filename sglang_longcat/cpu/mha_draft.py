"""Attention with separate K and V heads for a draft model on the CPU (`STANDALONE` speculation).

Owns: speculative windows and decode steps of a draft model without MLA, which SGLang's
`torch_native` does not support. `attention` makes the plans. SGLang serves such models as targets.
Remove when: SGLang's torch_native can draft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import scaled_dot_product_attention

from sglang_longcat.cpu.mla_backend import TorchMLABackend

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_longcat.cpu.attention import Group


class TorchMHABackend(TorchMLABackend):
    """softmax(scale * q k^T) v over k [slots, Hk, D] and v [slots, Hk, Dv]; H is a multiple of Hk.

    forward(q [T, H*D], k [T, Hk*D], v [T, Hk*Dv]) stores k and v, then returns [T, H*Dv].
    """

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        if save_kv_cache:
            slots = KVWriteLoc(forward_batch.out_cache_loc, None)
            self.token_to_kv_pool.set_kv_buffer(
                layer, slots, k.view(-1, *keys.shape[1:]), v.view(-1, *values.shape[1:])
            )
        q = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = q.new_zeros(len(q), layer.tp_q_head_num, values.shape[-1])
        for group in self.plan:
            out[group.rows] = _attend(group, q[group.rows], keys, values, layer.scaling)
        return out.flatten(1)

    forward_extend = forward_decode = _forward


def _attend(
    group: Group, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> torch.Tensor:
    requests, queries, _ = group.visible.shape
    out = scaled_dot_product_attention(
        q.reshape(requests, queries, *q.shape[1:]).transpose(1, 2),  # [B, H, Q, D]
        keys[group.slots].transpose(1, 2).to(q.dtype),  # [B, Hk, L, D]
        values[group.slots].transpose(1, 2).to(q.dtype),
        attn_mask=group.visible[:, None],
        scale=scale,
        enable_gqa=True,
    )
    return out.transpose(1, 2).flatten(0, 1)
