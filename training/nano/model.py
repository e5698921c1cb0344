"""LongCat-nano as it is trained: the reference model on batches, with gradients.

Owns: what the reference does for one sequence and training needs for batches: attention, the MoE,
the N-gram lookup, and the MTP layer's further steps. Everything else (order of operations, norms,
MLPs, router, hash, names and shapes) is the reference's own code. loop.py trains the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_longcat.checkpoint.layout import expected_tensors, is_linear
from sglang_longcat.config import LongcatConfig
from sglang_longcat.reference.attention import Mla
from sglang_longcat.reference.load import Weights
from sglang_longcat.reference.model import ReferenceModel
from sglang_longcat.reference.moe import Moe
from sglang_longcat.reference.ngram import Embedding, ngram_ids
from sglang_longcat.reference.semantics import LONGCAT_LITE

Parameters = dict[str, Tensor]
DRAFT_STEPS = 3
_WORD_STD = 5.0  # the embedding then has a std of about a half, after the mean over 13 rows
_TABLE_STD = 1.7
# The norm weight in front of the MoE. Identity experts add 6 * weight * their input; with a norm
# weight of 1 that would dominate everything else at first.
_MOE_INPUT = 0.3


def initial_parameters(config: LongcatConfig, *, device: torch.device, seed: int) -> Parameters:
    """fp32 tensors under their published names. All except the routers' biases are trained."""
    generator = torch.Generator().manual_seed(seed)
    blocks = 2 * config.num_layers
    parameters = {}
    for name, shape in expected_tensors(config, mtp=True).items():
        value = torch.randn(shape, generator=generator) * _std(name, shape, blocks=blocks)
        if "norm." in name:
            moe_input = name.endswith("post_attention_layernorm.0.weight")
            value = torch.full(shape, _MOE_INPUT if moe_input else 1.0)
        trained = not name.endswith("e_score_correction_bias")
        parameters[name] = value.to(device).requires_grad_(trained)
    return parameters


def _std(name: str, shape: tuple[int, ...], *, blocks: int) -> float:
    if name.endswith("e_score_correction_bias"):
        return 0.0
    if ".embedders." in name:
        return _TABLE_STD
    if name.endswith("embed_tokens.weight"):
        return _WORD_STD
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return 1 / math.sqrt(shape[1] * blocks)  # each block adds little at first
    if name.endswith("classifier.weight"):
        return 0.7 / _MOE_INPUT / math.sqrt(shape[1])
    if is_linear(name):
        return 0.7 / math.sqrt(shape[1])
    return 0.5 / math.sqrt(shape[-1])  # post_projs, lm_head


@dataclass
class _Live:
    """Stands for a checkpoint: the reference's `Weights` reads live parameters from it."""

    parameters: Parameters

    def read(self, name: str) -> Tensor:
        return self.parameters[name]

    def any_under(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.parameters)


class BatchedMla:
    """The reference's attention for x [B, T, hidden]; row t is at position t."""

    def __init__(self, mla: Mla) -> None:
        self.mla = mla

    def __call__(self, x: Tensor) -> Tensor:
        query, key, value = self._project(x, offset=0)
        return self._attend(query, key, value, mask=None)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
        """query, key and value are [B, heads, T, d]; causal if no mask is given."""
        width, padding = value.shape[-1], query.shape[-1] - value.shape[-1]
        out = F.scaled_dot_product_attention(
            query,
            key,
            F.pad(value, (0, padding)),  # flash attention needs equal head sizes; zeros stay zeros
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.mla.softmax_scale,
        )
        return F.linear(out[..., :width].transpose(1, 2).flatten(2), self.mla.o)

    def _project(self, x: Tensor, *, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        m, c = self.mla, self.mla.config
        split = (c.qk_nope_head_dim, c.qk_rope_head_dim)
        query = F.linear(m.q_norm(F.linear(x, m.q_a)), m.q_b) * c.q_scale
        q_nope, q_rope = query.unflatten(-1, (-1, m.head_dim)).split(split, dim=-1)
        latent, k_rope = F.linear(x, m.kv_a).split((c.kv_lora_rank, split[1]), dim=-1)
        expanded = F.linear(m.kv_norm(latent) * c.kv_scale, m.kv_b)
        k_nope, value = expanded.unflatten(-1, (c.num_attention_heads, -1)).split(
            (split[0], c.v_head_dim), dim=-1
        )
        shared = self._rotate(k_rope.unsqueeze(2), offset=offset).expand_as(q_rope)
        query = torch.cat((q_nope, self._rotate(q_rope, offset=offset)), dim=-1)
        key = torch.cat((k_nope, shared), dim=-1)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _rotate(self, x: Tensor, *, offset: int) -> Tensor:
        """x [B, T, heads, rope], row t at position t + offset."""
        rope = self.mla.rope
        positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float32) + offset
        angles = positions[:, None, None] * rope.inv_freq.to(x.device)
        cos, sin = angles.cos() * rope.magnitude, angles.sin() * rope.magnitude
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return turned.flatten(-2).to(x.dtype)


class DraftMla(BatchedMla):
    """The MTP layer's attention over its draft steps, as a draft loop sees it while serving.

    Step 1 is causal over rows 0..t. In step s, row t is at position t + s - 1. It sees the keys of
    rows 0..t of step 1 (the committed text) and its own keys of steps 2..s (its own draft).
    """

    def __init__(self, mla: Mla) -> None:
        super().__init__(mla)
        self.restart()

    def restart(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        step, rows = len(self.keys), x.shape[1]
        query, key, value = self._project(x, offset=step)
        self.keys.append(key)
        self.values.append(value)
        if step == 0:
            return self._attend(query, key, value, mask=None)
        square = torch.ones(rows, rows, dtype=torch.bool, device=x.device)
        own = torch.eye(rows, dtype=torch.bool, device=x.device)
        mask = torch.cat([square.tril(), *[own] * step], dim=1)
        return self._attend(query, torch.cat(self.keys, 2), torch.cat(self.values, 2), mask=mask)


class BatchedMoe:
    """The reference's MoE for x [B, T, hidden], as one wide MLP over all experts.

    Column block e of the inner activation belongs to expert e, and is multiplied by its weight (0
    if it was not chosen). With 64 columns per expert that is faster than sorting tokens. Keeps
    `load` (share of the chosen slots per expert) and `imbalance` (1 if scores and load are even) of
    the last call.
    """

    def __init__(self, moe: Moe) -> None:
        self.moe = moe
        self.load = self.imbalance = torch.zeros(())

    def __call__(self, x: Tensor) -> Tensor:
        rows, config = x.flatten(0, 1), self.moe.router.config
        with torch.autocast(x.device.type, enabled=False):
            chosen, weights = self.moe.router(rows.float())
        dense = torch.zeros(len(rows), config.router_logits, device=x.device)
        dense = dense.scatter(1, chosen, weights.float())
        self._account(chosen, dense / config.routed_scaling_factor)
        routed, identity = dense.split((config.n_routed_experts, config.zero_expert_num), dim=1)
        total = rows.float() * identity.sum(dim=1, keepdim=True) + self._experts(rows, routed)
        return total.view_as(x).to(x.dtype)

    def _experts(self, rows: Tensor, weights: Tensor) -> Tensor:
        experts = self.moe.experts
        gate = F.linear(rows, torch.cat([expert.gate for expert in experts]))
        up = F.linear(rows, torch.cat([expert.up for expert in experts]))
        inner = (F.silu(gate) * up).unflatten(-1, (len(experts), -1)) * weights.unsqueeze(-1)
        return F.linear(inner.flatten(1), torch.cat([expert.down for expert in experts], dim=1))

    def _account(self, chosen: Tensor, scores: Tensor) -> None:
        count = torch.zeros_like(scores).scatter(1, chosen, 1.0).mean(dim=0)
        self.load = (count / count.sum()).detach()
        share = scores.mean(dim=0) / scores.detach().mean(dim=0).sum()
        self.imbalance = (self.load * share).sum() * len(self.load)


class BatchedEmbedding:
    """The reference's embedding of tokens and n-gram ids [B, T, tables]. Without ids, the tables
    add 0.

    keep [B, T, tables] multiplies the row of each table (dropout).
    """

    def __init__(self, embedding: Embedding) -> None:
        self.embedding = embedding

    def __call__(self, tokens: Tensor, ids: Tensor | None, keep: Tensor | None = None) -> Tensor:
        reference = self.embedding
        total = F.embedding(tokens, reference.word)
        if ids is not None:
            for i, (table, projection) in enumerate(zip(reference.tables, reference.projections)):
                rows = F.embedding(ids[..., i], table)
                rows = rows if keep is None else rows * keep[..., i, None]
                total = total + F.linear(rows, projection).float()
        return total / (1 + len(reference.tables))


def batched_ngram_ids(tokens: Tensor, config: LongcatConfig) -> Tensor:
    """[B, T, tables] int64; each row of tokens [B, T] is a separate text.

    The reference is called once for the whole batch: an EOS before each row cuts its look-back, as
    the start of a text does.
    """
    assert config.ngram is not None
    eos = config.eos_token_ids
    flat = F.pad(tokens, (1, 0), value=eos[0]).flatten()
    return ngram_ids(flat, config.ngram, eos).view(len(tokens), -1, config.ngram.tables)[:, 1:]


class TrainedModel:
    """A ReferenceModel over live parameters, in which batched parts replace sequential ones."""

    def __init__(self, parameters: Parameters, config: LongcatConfig, *, ngram: bool = True):  # noqa: ANN204
        weights = Weights(_Live(parameters), torch.float32)  # type: ignore[arg-type]
        model = ReferenceModel(weights, config, LONGCAT_LITE, eps=config.rms_norm_eps)
        self.config, self.model, self.ngram = config, model, ngram
        self.embedding = BatchedEmbedding(model.embedding)
        self.moes = [BatchedMoe(layer.moe) for layer in model.layers]
        for layer, moe in zip(model.layers, self.moes):
            layer.attention = [BatchedMla(mla) for mla in layer.attention]  # type: ignore[misc]
            layer.moe = moe  # type: ignore[assignment]
        assert model.mtp is not None
        self.mtp = model.mtp
        self.draft = DraftMla(model.mtp.attention)
        self.mtp.attention = self.draft  # type: ignore[assignment]

    def ids(self, tokens: Tensor) -> Tensor | None:
        return batched_ngram_ids(tokens, self.config) if self.ngram else None

    def hidden(self, tokens: Tensor, ids: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, hidden] of tokens [B, T], after the final norm."""
        h = self.embedding(tokens, ids, keep)
        for layer in self.model.layers:
            h = layer(h)
        return self.model.norm(h)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.lm_head)

    def draft_logits(self, tokens: Tensor, hidden: Tensor) -> list[Tensor]:
        """Logits [B, T, vocab] of draft steps s = 1..; row t of step s predicts token t + s + 1.

        tokens [B, T + steps] are the text, hidden [B, T, hidden] the main model's states. Step s
        reads token t + s and the result of step s - 1. No gradient reaches the main model or the
        shared lm_head.
        """
        rows, h, logits = hidden.shape[1], hidden.detach(), []
        self.draft.restart()
        for step in range(1, DRAFT_STEPS + 1):
            h = self.mtp.hidden(F.embedding(tokens[:, step : step + rows], self.mtp.word), h)
            logits.append(F.linear(h, self.model.lm_head.detach()))
        self.draft.restart()
        return logits
