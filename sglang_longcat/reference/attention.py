"""Multi-head latent attention (MLA) over a whole sequence.

Owns: the projections, LongCat's scales on both latents, and causal attention. rope.py applies the
positions. Keys and values are expanded per head: no latent cache, no absorbed weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_longcat.config import LongcatConfig
from sglang_longcat.reference.layers import RmsNorm
from sglang_longcat.reference.load import Weights
from sglang_longcat.reference.rope import Rope


class Mla:
    """q = q_scale * q_b(norm(q_a(x))); k, v = kv_b(kv_scale * norm(latent(x))); causal softmax; o.

    Called with x [T, hidden]; returns [T, hidden]. `eps` is that of the two latent norms.
    `cache`: what a KV cache gives back for rows [T, rank + rope]; its second argument is the rank.
    """

    cache: Callable[[Tensor, int], Tensor] | None = None

    def __init__(self, weights: Weights, config: LongcatConfig, *, rope: Rope, eps: float) -> None:
        self.config, self.rope = config, rope
        c, heads = config, config.num_attention_heads
        self.head_dim = c.qk_nope_head_dim + c.qk_rope_head_dim
        self.softmax_scale = self.head_dim**-0.5 * rope.softmax_factor
        self.q_a = weights.take("q_a_proj.weight", c.q_lora_rank, c.hidden_size)
        self.q_norm = RmsNorm(weights.under("q_a_layernorm"), size=c.q_lora_rank, eps=eps)
        self.q_b = weights.take("q_b_proj.weight", heads * self.head_dim, c.q_lora_rank)
        self.kv_a = weights.take(
            "kv_a_proj_with_mqa.weight", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size
        )
        self.kv_norm = RmsNorm(weights.under("kv_a_layernorm"), size=c.kv_lora_rank, eps=eps)
        self.kv_b = weights.take(
            "kv_b_proj.weight", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank
        )
        self.o = weights.take("o_proj.weight", c.hidden_size, heads * c.v_head_dim)

    def __call__(self, x: Tensor) -> Tensor:
        query = self._query(x)
        key, value = self._key_value(x)
        scores = torch.einsum("thd,shd->hts", query.float(), key.float()) * self.softmax_scale
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(diagonal=1)
        attention = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        out = torch.einsum("hts,shd->thd", attention, value.float())
        return F.linear(out.flatten(1).to(x.dtype), self.o)

    def _query(self, x: Tensor) -> Tensor:
        """[T, heads, nope + rope]."""
        q = F.linear(self.q_norm(F.linear(x, self.q_a)), self.q_b) * self.config.q_scale
        nope, rope = q.unflatten(-1, (-1, self.head_dim)).split(
            (self.config.qk_nope_head_dim, self.config.qk_rope_head_dim), dim=-1
        )
        return torch.cat((nope, self.rope(rope)), dim=-1)

    def _key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, heads, nope + rope] and [T, heads, v]; the rope part is one vector for all heads."""
        c = self.config
        latent, rope = F.linear(x, self.kv_a).split((c.kv_lora_rank, c.qk_rope_head_dim), dim=-1)
        latent, rope = self._cached(self.kv_norm(latent) * c.kv_scale, self.rope(rope[:, None]))
        expanded = F.linear(latent, self.kv_b)
        nope, value = expanded.unflatten(-1, (c.num_attention_heads, -1)).split(
            (c.qk_nope_head_dim, c.v_head_dim), dim=-1
        )
        shared = rope.expand(-1, c.num_attention_heads, -1)
        return torch.cat((nope, shared), dim=-1), value

    def _cached(self, latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """[T, rank] and [T, 1, rope], as the KV cache gives them back."""
        if self.cache is None:
            return latent, rope
        rank = latent.shape[1]
        rows = self.cache(torch.cat((latent, rope[:, 0]), dim=-1), rank).to(latent.dtype)
        return rows[:, :rank], rows[:, None, rank:]
