"""The whole model: embedding, ScMoE layers, final norm, lm_head, and the calls that tests use.

Owns: the order of operations and the public API. Every call recomputes from the first token, so
there is no state that could be wrong. Real sizes would be slow here; the engine serves them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_longcat.config import LongcatConfig
from sglang_longcat.reference.attention import Mla
from sglang_longcat.reference.layers import Mlp, RmsNorm
from sglang_longcat.reference.load import Checkpoint, Weights
from sglang_longcat.reference.moe import Moe
from sglang_longcat.reference.mtp import MtpLayer
from sglang_longcat.reference.ngram import Embedding
from sglang_longcat.reference.rope import Rope
from sglang_longcat.reference.semantics import LONGCAT_LITE, Semantics

Tokens = Sequence[int] | Tensor


class Layer:
    """One shortcut-connected layer: two attentions, two dense MLPs, and one MoE.

    [T, hidden] -> [T, hidden]. The MoE reads the first MLP's input; its result is added at the end.
    """

    def __init__(
        self,
        weights: Weights,
        config: LongcatConfig,
        semantics: Semantics,
        *,
        rope: Rope,
        eps: float,
    ) -> None:
        hidden, width, norm_eps = config.hidden_size, config.ffn_hidden_size, config.rms_norm_eps

        def norms(name: str) -> list[RmsNorm]:
            return [
                RmsNorm(weights.under(f"{name}.{i}"), size=hidden, eps=norm_eps) for i in (0, 1)
            ]

        self.in_norm, self.post_norm = norms("input_layernorm"), norms("post_attention_layernorm")
        self.attention = [
            Mla(weights.under(f"self_attn.{i}"), config, rope=rope, eps=eps) for i in (0, 1)
        ]
        self.mlp = [Mlp(weights.under(f"mlps.{i}"), hidden=hidden, width=width) for i in (0, 1)]
        self.moe = Moe(weights.under("mlp"), config, semantics)

    def __call__(self, h: Tensor) -> Tensor:
        h = h + self.attention[0](self.in_norm[0](h))
        normed = self.post_norm[0](h)
        shortcut = self.moe(normed)
        h = h + self.mlp[0](normed)
        h = h + self.attention[1](self.in_norm[1](h))
        h = h + self.mlp[1](self.post_norm[1](h))
        return h + shortcut


class ReferenceModel:
    """LongCat-Flash-Lite on the CPU. Build it with `from_checkpoint`.

    All calls take one sequence of T >= 1 token ids (list or 1-D tensor). They raise ValueError for
    an empty sequence, and for an id outside the vocabulary.
    """

    def __init__(
        self, weights: Weights, config: LongcatConfig, semantics: Semantics, *, eps: float
    ) -> None:
        self.config, self.semantics = config, semantics
        hidden, body, rope = config.hidden_size, weights.under("model"), Rope(config)
        self.embedding = Embedding(body, config, semantics)
        self.layers = [
            Layer(body.under(f"layers.{i}"), config, semantics, rope=rope, eps=eps)
            for i in range(config.num_layers)
        ]
        self.norm = RmsNorm(body.under("norm"), size=hidden, eps=config.rms_norm_eps)
        self.lm_head = weights.take("lm_head.weight", config.vocab_size, hidden)
        self.mtp: MtpLayer | None = None
        if weights.checkpoint.any_under("model.mtp."):
            self.mtp = MtpLayer(body.under("mtp"), config, rope=rope, eps=eps)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        *,
        semantics: Semantics = LONGCAT_LITE,
        latent_norm_eps: float | None = None,
        cache: Callable[[Tensor, int], Tensor] | None = None,
    ) -> ReferenceModel:
        """Load a directory: config.json and BF16/FP32 or block-FP8 safetensors.

        dtype: of weights and activations (the router is always fp32). latent_norm_eps: eps of the
        q_a and kv_a norms. None means config.rms_norm_eps, which SGLang uses; transformers uses
        1e-6. cache: `Mla.cache`, such as `kv_rows.rounded`; every token sees itself through it too.
        Raises ConfigError, or a CheckpointError that names a missing, misshaped or unknown tensor.
        """
        config, checkpoint = LongcatConfig.from_dir(path), Checkpoint(path)
        eps = config.rms_norm_eps if latent_norm_eps is None else latent_norm_eps
        model = cls(Weights(checkpoint, dtype), config, semantics, eps=eps)
        for attention in model.attentions():
            attention.cache = cache
        checkpoint.require_all_read()
        return model

    def attentions(self) -> list[Mla]:
        """All of them, the MTP layer's too."""
        own = [attention for layer in self.layers for attention in layer.attention]
        return own if self.mtp is None else [*own, self.mtp.attention]

    @torch.no_grad()
    def hidden(self, tokens: Tokens) -> Tensor:
        """Hidden states after the final norm: [T, hidden] in the model's dtype."""
        h = self.embedding(self._checked(tokens))
        for layer in self.layers:
            h = layer(h)
        return self.norm(h)

    @torch.no_grad()
    def __call__(self, tokens: Tokens) -> Tensor:
        """Logits [T, vocab] fp32; row t predicts token t+1."""
        return F.linear(self.hidden(tokens), self.lm_head).float()

    @torch.no_grad()
    def logprobs(self, tokens: Tokens) -> Tensor:
        """log p(tokens[t+1] | tokens[:t+1]) at entry t: [T-1] fp32."""
        ids = self._checked(tokens)
        return self(ids)[:-1].log_softmax(dim=-1).gather(1, ids[1:, None]).squeeze(1)

    def greedy(self, prompt: Sequence[int], max_new: int) -> list[int]:
        """The `max_new` most likely next tokens, one after another; EOS does not stop it."""
        tokens = list(prompt)
        for _ in range(max_new):
            tokens.append(int(self(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    @torch.no_grad()
    def mtp_logits(self, tokens: Tokens, *, embedding: Literal["mtp", "target"] = "mtp") -> Tensor:
        """MTP logits [T-1, vocab] fp32; row t reads hidden t and token t+1 and predicts token t+2.

        embedding: "mtp" looks token t+1 up in model.mtp.embed_tokens; "target" uses the target's
        n-gram embedding of it. Raises ValueError if the checkpoint has no MTP layer.
        """
        if self.mtp is None:
            raise ValueError(
                "the checkpoint has no model.mtp.* tensors; expected 17 of them. "
                "Use a checkpoint with the MTP layer."
            )
        ids = self._checked(tokens)
        rows = self.mtp.word[ids] if embedding == "mtp" else self.embedding(ids)
        hidden = self.mtp.hidden(rows[1:], self.hidden(ids)[:-1])
        return F.linear(hidden, self.lm_head).float()

    def _checked(self, tokens: Tokens) -> Tensor:
        ids = torch.as_tensor(tokens, dtype=torch.int64)
        vocab = self.config.vocab_size
        if ids.ndim != 1 or not len(ids) or ids.min() < 0 or ids.max() >= vocab:
            raise ValueError(
                f"token ids of shape {tuple(ids.shape)} are no prompt: expected one non-empty "
                f"sequence of ids from 0 to {vocab - 1}. Tokenize with this checkpoint's tokenizer."
            )
        return ids
