"""Block-FP8 weights in torch: kept as loaded, widened to the activations' dtype when used.

Owns: a quantisation config (two registries, no hook), and one hook for MLA's absorbed kv_b. It
changes weights only: activations stay as they are, while a GPU quantises them too. SGLang keeps all
other FP8 schemes.
Why: without AMX, SGLang's FP8 methods do not finish loading. They refuse fp32 activations on every
device. And kv_b is requantised with one scale for the whole tensor, which rounds it again.
Upstream: srt/layers/quantization/fp8.py:828 and :2186 (AMX), :326 (dtypes); fp8_utils.py:2001
(block_quant_to_tensor_quant), called for kv_b in srt/models/longcat_flash.py:780.
Remove when: Fp8Config serves block FP8 on a CPU without AMX, and kv_b keeps its block scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from sglang.srt.layers.linear import WEIGHT_LOADER_V2_SUPPORTED
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from sglang.srt.layers.quantization.fp8 import Fp8Config, Fp8LinearMethod, Fp8MoEMethod
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import process_model_config
from sglang.srt.utils import cpu_has_amx_support
from torch.nn import functional as F

from sglang_longcat.cpu.experts import WidenedExperts

if TYPE_CHECKING:
    from sglang.srt.layers.quantization.base_config import QuantizeMethodBase

TARGET = "sglang.srt.layers.quantization.fp8_utils.block_quant_to_tensor_quant"
_NAME = "fp8"


def register() -> str:
    if cpu_has_amx_support():
        return "block FP8: SGLang's"
    QUANTIZATION_METHODS[_NAME] = TorchFp8Config
    # SGLang decides by this list of class names whether a scale is sharded and fused as a scale, or
    # as a weight.
    WEIGHT_LOADER_V2_SUPPORTED.append(TorchBlockFp8Linear.__name__)
    HookRegistry.register(TARGET, _widened, HookType.REPLACE)
    return "block FP8: torch, weights widened at each use"


def widen(
    weight: torch.Tensor, scale: torch.Tensor, block: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    """w[..., r, c] * scale[..., r // block[0], c // block[1]], the product in fp32, as `dtype`.

    weight: [..., R, C] float8; scale: [..., ceil(R / block[0]), ceil(C / block[1])] fp32.
    """
    rows, columns = weight.shape[-2:]
    full = scale.repeat_interleave(block[0], dim=-2)[..., :rows, :]
    full = full.repeat_interleave(block[1], dim=-1)[..., :columns]
    return (weight.float() * full).to(dtype)


class TorchFp8Config(Fp8Config):
    """SGLang's config with the two methods below for block FP8, and with fp32 activations."""

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [*super().get_supported_act_dtypes(), torch.float32]

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        method = super().get_quant_method(layer, prefix)
        if self.weight_block_size is None or self.is_fp4_experts:
            return method
        ours = _METHODS.get(type(method))
        return ours(self) if ours else method


class TorchBlockFp8Linear(Fp8LinearMethod):
    """y = x @ widen(weight).T + bias. Nothing is derived from the weights at load time, so that an
    update of weights, of scales or of both takes effect by itself."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        pass

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        weight, scale = layer.get_parameter("weight"), layer.get_parameter("weight_scale_inv")
        return F.linear(x, widen(weight.data, scale.data, self.weight_block_size, x.dtype), bias)


class TorchBlockFp8Experts(WidenedExperts, Fp8MoEMethod):
    form = "block-FP8"

    def widened(
        self, layer: torch.nn.Module, name: str, chosen: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        weight = layer.get_parameter(f"{name}_weight").data[chosen]
        scale = layer.get_parameter(f"{name}_weight_scale_inv").data[chosen]
        return widen(weight, scale, self.weight_block_size, dtype)


_METHODS = {Fp8LinearMethod: TorchBlockFp8Linear, Fp8MoEMethod: TorchBlockFp8Experts}


def _widened(
    weight: torch.Tensor, scale: torch.Tensor, block: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """kv_b as MLA absorbs it, in the model's dtype, and the scale that remains to be applied: 1."""
    return widen(weight, scale, block, process_model_config().dtype), torch.ones(())
