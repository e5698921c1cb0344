"""The multi-token-prediction (MTP) layer: one dense layer that drafts the token after the next.

Owns: the 17 `model.mtp.*` tensors. Leaves to others: the target's hidden states, the shared
lm_head, and the drafting loop (which passes the result of `hidden` back in to draft further).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_longcat.config import LongcatConfig
from sglang_longcat.reference.attention import Mla
from sglang_longcat.reference.layers import Mlp, RmsNorm
from sglang_longcat.reference.load import Weights
from sglang_longcat.reference.rope import Rope


class MtpLayer:
    """Row t: e = enorm(embedding of token t+1), h = hnorm(the target's hidden state t, normed);

    x = eh_proj([e, h]); x += mla(input_norm(x)); x += mlp(post_norm(x)); the result is norm(x).
    The lm_head on row t predicts token t+2.
    """

    def __init__(self, weights: Weights, config: LongcatConfig, *, rope: Rope, eps: float) -> None:
        hidden, layer = config.hidden_size, weights.under("layers.0")

        def norm(below: Weights, name: str) -> RmsNorm:
            return RmsNorm(below.under(name), size=hidden, eps=config.rms_norm_eps)

        self.word = weights.take("embed_tokens.weight", config.vocab_size, hidden)
        self.enorm, self.hnorm = norm(layer, "enorm.m"), norm(layer, "hnorm.m")
        self.eh_proj = layer.take("eh_proj.weight", hidden, 2 * hidden)
        self.input_norm = norm(layer, "input_layernorm")
        self.post_norm = norm(layer, "post_attention_layernorm")
        self.attention = Mla(layer.under("self_attn"), config, rope=rope, eps=eps)
        self.mlp = Mlp(
            layer.under("transformer_layer.mlp"), hidden=hidden, width=config.ffn_hidden_size
        )
        self.norm = norm(weights, "norm")

    def hidden(self, embeddings: Tensor, target_hidden: Tensor) -> Tensor:
        """Both inputs and the result are [T, hidden]; the result has passed the final norm."""
        joined = torch.cat((self.enorm(embeddings), self.hnorm(target_hidden)), dim=-1)
        x = F.linear(joined, self.eh_proj)
        x = x + self.attention(self.input_norm(x))
        x = x + self.mlp(self.post_norm(x))
        return self.norm(x)
