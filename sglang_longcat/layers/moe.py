"""Mixture of experts with identity experts, on SGLang's router weights and grouped GEMM.

    y = scale * (sum_{e routed} p_e E_e(x) + (sum_{e identity} p_e) x)

Both parts carry routed_scaling_factor. Identity slots get expert id -1, which the grouped GEMM
skips. The identity part is added before the output's all-reduce, by one rank of those that are
summed. Owns routing and the identity part; weights, expert GEMM and expert parallelism are
SGLang's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.models.longcat_flash import LongcatFlashMoE

from longcat_kernels.identity_experts import add_identity_
from longcat_kernels.moe_router import Routing, fuses, route, route_tokens

if TYPE_CHECKING:
    from sglang.srt.configs import LongcatFlashConfig


class LongcatMoE(LongcatFlashMoE):
    """`forward(x [T, hidden], adds_identity)`; x is left as it is."""

    def __init__(self, config: LongcatFlashConfig, **options: Any) -> None:
        super().__init__(config=config, **options)
        runner = self.experts.moe_runner_config
        # The grouped GEMM drops slots with id -1 only where it expects experts of other ranks,
        # which it takes from these two counts differing: 256 local experts of 384 that a token may
        # choose.
        runner.num_experts = self.num_experts + self.zero_expert_num
        # The dense branch reads the same input, so no copy of it is spent on an in-place result.
        runner.inplace = False

    def _route(self, hidden_states: torch.Tensor) -> Routing:
        classifier, bias = self.router.classifier, self.router.e_score_correction_bias
        options = {
            "top_k": self.top_k,
            "routed": self.num_experts,
            "scale": self.routed_scaling_factor,
        }
        if classifier.bias is None and fuses(hidden_states, classifier.weight):
            return route_tokens(hidden_states, classifier.weight, bias, **options)
        return route(self.router(hidden_states), bias, **options)

    def forward(self, hidden_states: torch.Tensor, adds_identity: bool) -> torch.Tensor:
        routing = self._route(hidden_states)
        # In place of logits, which no runner reads here; SGLang's graph op insists on a tensor.
        chosen = StandardTopKOutput(routing.weights, routing.expert_ids, routing.weights)
        output = self.experts(hidden_states, chosen)
        if adds_identity:
            add_identity_(output, hidden_states, routing.identity_weight)
        return output
