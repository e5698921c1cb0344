"""The kernels of a step's layers, launched as the engine does while it captures a CUDA graph.

The router on a stream of the highest priority, the dense branch on one above the experts', which
have the captured one (sglang_longcat/models/branch.py); sums and norms between layers in one launch
(sglang_longcat/layers/owed.py). Owns order and streams for tools/tune_layer.py; what they read is
layer_inputs.py's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from expert_launch import TOP_K, Routing, align, launch
from expert_space import Tile, Variant
from layer_attention import Attention
from layer_inputs import SHAPE, Inputs, Weights
from layer_space import ATTENTION, EXPERTS, PROJECTIONS, ROWS, Choice, Choices
from longcat_kernels import moe_router
from longcat_kernels.expert_finalize import finalize_norm
from longcat_kernels.mla_decode.workloads import HEADS
from longcat_kernels.mla_prologue import absorb_query, norm_and_store
from longcat_kernels.mla_prologue.workloads import EPS, KV_LORA, NOPE, Q_LORA, ROPE
from longcat_kernels.moe_router import workloads as router
from longcat_kernels.small_linear.configs import Config
from longcat_kernels.small_linear.workloads import FUSED_A_TOKENS

Streams = tuple[torch.cuda.Stream, torch.cuda.Stream]  # the router's and the dense branch's


class Step:
    """`run(choices)` launches on the current stream and those given, and returns how tokens were
    routed, by layer."""

    def __init__(self, inputs: Inputs, weights: Sequence[Weights], streams: Streams) -> None:
        self.inputs, self.weights, self.streams = inputs, weights, streams
        self.attention = Attention(inputs)

    def run(self, choices: Choices) -> list[moe_router.Routing]:
        residual = torch.zeros_like(self.inputs.x)
        x, routings = self._norm(self.inputs.x.clone(), residual), []
        for i in range(len(self.weights)):
            x, routing = self._layer(i, x, residual, choices)
            routings.append(routing)
        return routings

    def _layer(
        self, i: int, x: torch.Tensor, residual: torch.Tensor, choices: Choices
    ) -> tuple[torch.Tensor, moe_router.Routing]:
        weights, own, (urgent, chain) = self.weights[i], torch.cuda.current_stream(), self.streams
        x = self._norm(self._attend(i, 0, x, choices), residual)
        urgent.wait_stream(own)
        chain.wait_stream(own)
        with torch.cuda.stream(urgent):
            routing = moe_router.route_tokens(x, weights.router, weights.bias, router.OPTIONS)
        own.wait_stream(urgent)
        experts = self._experts(i, x, routing, choices)
        with torch.cuda.stream(chain):
            dense = self._dense(i, x, residual, choices)
        own.wait_stream(chain)
        mixture = experts, routing.expert_ids, x, routing.identity_weight, dense
        norm = self.inputs.norms[x.shape[1]]
        return finalize_norm(*mixture, residual=residual, norm_weight=norm, eps=EPS), routing

    def _experts(
        self, i: int, x: torch.Tensor, routing: moe_router.Routing, choices: Choices
    ) -> torch.Tensor:
        batch = dataclasses.replace(self.inputs.batch, x=x)
        rows = align(SHAPE, Routing(routing.expert_ids, routing.weights), ROWS)
        count = x.shape[0] * TOP_K
        for axis, op in EXPERTS.items():
            tile = choices[axis]
            assert isinstance(tile, Tile)
            launch(Variant(op, tile), self.weights[i].experts, batch, rows)
            if op == "up":
                silu_and_mul(batch.gate_up[:count], batch.act[:count])
        return batch.out

    def _dense(
        self, i: int, x: torch.Tensor, residual: torch.Tensor, choices: Choices
    ) -> torch.Tensor:
        x = self._norm(self._mlp(i, 0, x, choices), residual)
        x = self._norm(self._attend(i, 1, x, choices), residual)
        return self._mlp(i, 1, x, choices)

    def _attend(self, i: int, j: int, x: torch.Tensor, choices: Choices) -> torch.Tensor:
        inputs, weights = self.inputs, self.weights[i]
        angles: dict[str, Any] = {"positions": inputs.positions, "cos_sin": inputs.cos_sin}
        q_lora = norm_and_store(
            self._project("qkv_a", i, j, x, choices),
            inputs.norms[Q_LORA],
            inputs.norms[KV_LORA],
            eps=EPS,
            slots=inputs.slots,
            kv_buffer=inputs.caches[i][j].latents[:, None],
            **angles,
        )
        q = self._project("q_b", i, j, q_lora, choices).view(-1, HEADS, NOPE + ROPE)
        query = absorb_query(q, weights.w_kc[j], **angles)
        values = self.attention(choices[ATTENTION], i, j, query, weights.w_vc[j])
        return self._project("o", i, j, values.flatten(1), choices)

    def _mlp(self, i: int, j: int, x: torch.Tensor, choices: Choices) -> torch.Tensor:
        return self._project("down", i, j, self._project("gate_up", i, j, x, choices), choices)

    def _project(
        self, name: str, i: int, j: int, x: torch.Tensor, choices: Choices
    ) -> torch.Tensor:
        return project(name, choices[name], x, self.weights[i].projections[name][j])

    def _norm(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        from flashinfer.norm import fused_add_rmsnorm

        fused_add_rmsnorm(x, residual, self.inputs.norms[x.shape[1]], EPS, enable_pdl=True)
        return x


def project(name: str, choice: Choice, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, columns], weight [rows, columns]. None: what the engine calls where it has no table."""
    from longcat_kernels.small_linear import _triton

    op = PROJECTIONS[name].op
    if isinstance(choice, Config):
        return _triton.launch(op, x, weight, choice)
    if name == "qkv_a" and x.shape[0] <= FUSED_A_TOKENS:
        from sglang.kernels.ops.gemm.fused_a_gemm import dsv3_fused_a_gemm

        return dsv3_fused_a_gemm(x, weight.t())
    y = torch.nn.functional.linear(x, weight)
    if op == "linear":
        return y
    return silu_and_mul(y, y.new_empty(y.shape[0], y.shape[1] // 2))


def silu_and_mul(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    from sglang.kernels.ops.activation import silu_and_mul as sglang

    sglang(x, out)
    return out
