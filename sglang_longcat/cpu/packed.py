"""4-bit weights in torch: kept as loaded, dequantised to the activations' dtype when used.

Owns: the two methods that `PackedConfig` gives its layers on a CPU, and the dtypes with which
SGLang accepts 4-bit checkpoints there. Parameters, their loading and sharding are those of a GPU.
Why: SGLang's W4A16 methods repack weights for Marlin, which is CUDA. Its AutoRound, GPTQ and AWQ
refuse the CPU without AMX, and all of them refuse fp32 activations.
Upstream: srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py:199 and
compressed_tensors_wNa16_moe.py:278 (Marlin); get_supported_act_dtypes of each config (dtypes).
Remove when: SGLang serves W4A16 on a CPU without AMX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.linear import WEIGHT_LOADER_V2_SUPPORTED
from sglang.srt.layers.quantization import QUANTIZATION_METHODS
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsFusedMoEMethod,
    CompressedTensorsLinearMethod,
)
from torch.nn import functional as F

from sglang_longcat.checkpoint.packing import PackedWeight, dequantise, unpack, unpack_awq
from sglang_longcat.cpu.experts import WidenedExperts
from sglang_longcat.layers.packed import PackedConfig

if TYPE_CHECKING:
    from sglang.srt.layers.moe import MoeRunnerConfig

_NAMES = ("auto-round", "gptq", "awq", "compressed-tensors")


def register() -> str:
    for name in _NAMES:
        QUANTIZATION_METHODS[name] = _with_dtypes(QUANTIZATION_METHODS[name])
    PackedConfig.linear_method = TorchPackedLinear
    PackedConfig.experts_method = TorchPackedExperts
    # By this list of class names SGLang decides whether a scale is sharded as a scale.
    WEIGHT_LOADER_V2_SUPPORTED.append(TorchPackedLinear.__name__)
    return "4 bits: torch, weights dequantised at each use"


def _with_dtypes(config: type[Any]) -> type[Any]:
    """SGLang's config, of which PackedConfig takes the place as soon as the model is built."""
    dtypes = [torch.float16, torch.bfloat16, torch.float32]
    return type(config.__name__, (config,), {"get_supported_act_dtypes": lambda self: dtypes})


class TorchPackedLinear(CompressedTensorsLinearMethod):
    """y = x @ dequantise(weight).T + bias. Nothing is derived from the weights at load time, so
    that an update takes effect by itself."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        pass

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        config, read = self.quant_config, layer.get_parameter
        zeros = None if config.symmetric else unpack(read("weight_zero_point").data, 0)
        packed = PackedWeight(read("weight_packed").data, read("weight_scale").data, zeros)
        return F.linear(x, dequantise(packed, config.group_size).to(x.dtype), bias)


class TorchPackedExperts(WidenedExperts, CompressedTensorsFusedMoEMethod):
    form, runner = "4-bit", None

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: MoeRunnerConfig) -> None:
        self.moe_runner_config = moe_runner_config

    def get_moe_runner_backend(self, layer: torch.nn.Module) -> None:
        return None

    def widened(
        self, layer: torch.nn.Module, name: str, chosen: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """[chosen, o, i]. An expert's parameters are transposed: values [i/8, o], scales [i/g, o],
        zero points [i/g, o/8] in AWQ's order."""
        read = layer.get_parameter
        values, scales = read(f"{name}_weight_packed").data, read(f"{name}_weight_scale").data
        zeros = None if self.quant_config.symmetric else read(f"{name}_weight_zero_point").data
        experts = [
            PackedWeight(
                values[expert].t(),
                scales[expert].t(),
                None if zeros is None else unpack_awq(zeros[expert]).t(),
            )
            for expert in chosen.tolist()
        ]
        size = self.quant_config.group_size
        return torch.stack([dequantise(expert, size).to(dtype) for expert in experts])
