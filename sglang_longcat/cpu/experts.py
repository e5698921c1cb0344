"""Routed experts in torch, where an id below zero means "no expert here" (a hook).

Why: the in-tree CPU loop counts ids with scatter_. That fails on negative ids (expert parallelism
and zero-expert slots produce -1), and counts an id that one token repeats only once.
Upstream: srt/layers/moe/fused_moe_native.py:61 (moe_forward_native), called from
srt/layers/quantization/unquant.py:1385.
Remove when: moe_forward_native skips ids < 0 and counts repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from sglang.srt.layers.moe import MoeRunnerConfig
    from sglang.srt.layers.moe.token_dispatcher import (
        StandardCombineInput,
        StandardDispatchOutput,
    )
    from sglang.srt.layers.moe.topk import StandardTopKOutput

TARGET = "sglang.srt.layers.moe.fused_moe_native.moe_forward_native"


def routed_experts(
    x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """y[t] = sum over slots s with ids[t, s] >= 0 of weights[t, s] * expert(ids[t, s])(x[t]),
    expert(e)(x) = w2[e] @ (silu(gate) * up) with (gate, up) = w13[e] @ x.

    x: [T, H]; w13: [E, 2I, H]; w2: [E, H, I]; ids: [T, K] local expert ids; weights: [T, K].
    The sum is in fp32, the result in x.dtype. An id of E or more is an IndexError.
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    flat, gains = ids.flatten().long(), weights.flatten().float()
    order = flat.argsort(stable=True)
    order = order[flat[order] >= 0]
    present, counts = flat[order].unique_consecutive(return_counts=True)
    for expert, slots in zip(present.tolist(), order.split(counts.tolist()), strict=True):
        tokens = slots // ids.shape[1]
        gate, up = F.linear(x[tokens], w13[expert]).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, w2[expert])
        out.index_add_(0, tokens, y.float() * gains[slots, None])
    return out.to(x.dtype)


class WidenedExperts:
    """For a subclass of SGLang's method that keeps quantised weights as loaded: `routed_experts` on
    the widened weights of the experts that the batch chose."""

    form: ClassVar[str]  # of the weights, for the error
    moe_runner_config: MoeRunnerConfig

    def widened(
        self, layer: torch.nn.Module, name: str, chosen: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """[chosen, o, i] of `name`, "w13" or "w2"."""
        raise NotImplementedError

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        pass

    def apply(
        self, layer: torch.nn.Module, dispatch_output: StandardDispatchOutput
    ) -> StandardCombineInput:
        if not is_plain_silu(layer, self.moe_runner_config):
            raise NotImplementedError(
                f"the CPU's {self.form} experts of sglang-longcat compute w2 @ (silu(gate) * up); "
                f"this model asks for {self.moe_runner_config}. Serve it in bf16, or on a GPU."
            )
        from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

        x, topk = dispatch_output.hidden_states, dispatch_output.topk_output
        ids = topk.topk_ids
        chosen, position = ids.clamp(min=0).unique(return_inverse=True)
        w13, w2 = (self.widened(layer, name, chosen, x.dtype) for name in ("w13", "w2"))
        ids = position.where(ids >= 0, ids)
        return StandardCombineInput(routed_experts(x, w13, w2, ids, topk.topk_weights))


def register() -> str:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, _moe_forward_native, HookType.AROUND)
    return "experts: torch, fp32 sum, ids < 0 skipped"


def _moe_forward_native(
    original: Callable[..., torch.Tensor],
    layer: torch.nn.Module,
    x: torch.Tensor,
    topk_output: StandardTopKOutput,
    moe_runner_config: MoeRunnerConfig,
) -> torch.Tensor:
    if not is_plain_silu(layer, moe_runner_config):
        return original(layer, x, topk_output, moe_runner_config)
    w13, w2 = layer.get_parameter("w13_weight"), layer.get_parameter("w2_weight")
    return routed_experts(x, w13, w2, topk_output.topk_ids, topk_output.topk_weights)


def is_plain_silu(layer: torch.nn.Module, config: MoeRunnerConfig) -> bool:
    """True for experts like LongCat's; SGLang computes those of other models."""
    return (
        config.activation == "silu"
        and config.gemm1_alpha is None
        and not config.apply_router_weight_on_input
        and not hasattr(layer, "w13_weight_bias")
    )
