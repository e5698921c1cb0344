"""The mixture of experts with zero-computation (identity) experts.

Owns: routing and the weighted sum. model.py decides where the result is added.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_longcat.config import LongcatConfig
from sglang_longcat.reference.layers import Mlp
from sglang_longcat.reference.load import Weights
from sglang_longcat.reference.semantics import Semantics


class Router:
    """score = softmax(classifier(x)) over routed + identity experts, in fp32.

    The experts with the k largest score + bias are chosen. Their weight is the score without the
    bias, not renormalised, times routed_scaling_factor. x [T, hidden] -> experts [T, k] int64 and
    weights [T, k] fp32. Expert ids from n_routed_experts upwards are identity experts.
    """

    def __init__(self, weights: Weights, config: LongcatConfig, semantics: Semantics) -> None:
        self.config, self.semantics = config, semantics
        outputs, fp32 = config.router_logits, torch.float32
        self.classifier = weights.take("classifier.weight", outputs, config.hidden_size, dtype=fp32)
        self.bias = weights.take("e_score_correction_bias", outputs, dtype=fp32)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x.float(), self.classifier).softmax(dim=-1)
        experts = (scores + self.bias).topk(self.config.moe_topk, dim=-1).indices
        weights = scores.gather(1, experts)
        scaled = weights * self.config.routed_scaling_factor
        if self.semantics.identity_scaled:
            return experts, scaled
        return experts, torch.where(experts < self.config.n_routed_experts, scaled, weights)


class Moe:
    """sum over the chosen experts of weight * expert(x); an identity expert returns x.

    Called with x [T, hidden]; returns [T, hidden], summed in fp32.
    """

    def __init__(self, weights: Weights, config: LongcatConfig, semantics: Semantics) -> None:
        self.router = Router(weights.under("router"), config, semantics)
        self.experts = [
            Mlp(
                weights.under(f"experts.{e}"),
                hidden=config.hidden_size,
                width=config.expert_ffn_hidden_size,
            )
            for e in range(config.n_routed_experts)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        chosen, weights = self.router(x)
        identity = chosen >= len(self.experts)
        total = x.float() * (weights * identity).sum(dim=-1, keepdim=True)
        for e in chosen[~identity].unique().tolist():
            token, slot = (chosen == e).nonzero(as_tuple=True)
            total[token] += self.experts[e](x[token]).float() * weights[token, slot, None]
        return total.to(x.dtype)
