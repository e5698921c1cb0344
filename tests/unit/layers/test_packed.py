"""What reaches SGLang's Marlin kernels, seen where they would repack it, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sglang.srt.layers.quantization import marlin_utils
from sglang.srt.layers.quantization.compressed_tensors.schemes import (
    compressed_tensors_wNa16 as linear_scheme,
)
from sglang.srt.layers.quantization.compressed_tensors.schemes import (
    compressed_tensors_wNa16_moe as experts_scheme,
)
from torch import nn

from sglang_longcat.checkpoint.packed_reader import PackedReader
from sglang_longcat.config import QuantConfig, read_quant
from sglang_longcat.layers.packed import PackedConfig
from sglang_longcat.testing import packed as packers
from sglang_longcat.testing.packed import Scheme, quantization_config

OUT, IN, EXPERTS = 128, 256, 2
SCHEMES = [
    Scheme("auto-round"),
    Scheme("gptq", 32),
    Scheme("auto-round", 64, symmetric=False),
    Scheme("awq", symmetric=False),
    Scheme("compressed-tensors", 64),
    Scheme("compressed-tensors", 32, symmetric=False),
]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
Repacked = list[torch.Tensor]


@pytest.fixture
def repacked(monkeypatch: pytest.MonkeyPatch) -> Repacked:
    """What the kernel that repacks weights for Marlin was given, [i/8, o] each time."""
    given: Repacked = []

    def repack(words: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(words.clone())
        return words.reshape(words.shape[0] // 2, 2 * words.shape[1])  # the shape of Marlin's tiles

    monkeypatch.setattr(linear_scheme, "gptq_marlin_repack", repack, raising=False)
    # By name: SGLang imports this module and its schemes in a circle.
    kernels = "sglang.srt.hardware_backend.gpu.quantization.gptq_kernels"
    monkeypatch.setattr(f"{kernels}.gptq_marlin_repack", repack)
    for module in (linear_scheme, experts_scheme):
        monkeypatch.setattr(module, "marlin_make_workspace", lambda *args: None)
    return given


def quant_of(scheme: Scheme) -> QuantConfig:
    quant = read_quant({"quantization_config": quantization_config(scheme)})
    assert quant is not None
    return quant


def read(module: str, scheme: Scheme, quantised: packers.Quantised) -> dict[str, torch.Tensor]:
    """The layer's parameters, by our reader, from the format's tensors."""
    parts = packers._PACKERS[scheme.method](*quantised)
    reader = PackedReader(quant_of(scheme), {f"{module}.weight": (OUT, IN)})
    named = reader.read((f"{module}.{part}", tensor) for part, tensor in parts.items())
    return {name.removeprefix(f"{module}."): tensor for name, tensor in named}


def drawn(name: str, scheme: Scheme) -> packers.Quantised:
    return packers.quantise(name, torch.randn(OUT, IN), scheme)


def filled(layer: nn.Module, fill: Callable[[str, torch.Tensor], None]) -> None:
    for name, parameter in layer.named_parameters():
        fill(name, parameter.data)


def assert_marlin(
    quantised: packers.Quantised,
    scheme: Scheme,
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
) -> None:
    """As SGLang makes them of a GPTQ layer's values and scales, and of AWQ's zero points."""
    gptq, awq = packers._gptq(*quantised), packers._awq(*quantised)
    assert torch.equal(words, gptq["qweight"])
    permuted = marlin_utils.marlin_permute_scales(
        gptq["scales"].bfloat16(), IN, OUT, scheme.group_size
    )
    assert torch.equal(scales, permuted)
    if not scheme.symmetric:
        groups = IN // scheme.group_size
        points = marlin_utils.awq_to_marlin_zero_points(awq["qzeros"], groups, OUT, 4)
        assert zeros is not None
        assert torch.equal(zeros, points)


@each_scheme
def test_linear(scheme: Scheme, repacked: Repacked) -> None:
    """Red if a linear layer's values, scales or zero points reach Marlin in another order."""
    module = "model.layers.0.self_attn.0.o_proj"
    quantised = drawn(module, scheme)
    parameters = read(module, scheme, quantised)
    method = PackedConfig(quant_of(scheme))._linear_scheme()
    layer = nn.Module()
    method.create_weights(
        layer,
        output_size=OUT,
        input_size=IN,
        output_partition_sizes=[OUT],
        input_size_per_partition=IN,
        params_dtype=torch.bfloat16,
        weight_loader=lambda parameter, tensor: None,
    )
    for name, tensor in parameters.items():
        layer.get_parameter(name).data.copy_(tensor)
    method.process_weights_after_loading(layer)
    zeros = None if scheme.symmetric else layer.weight_zero_point
    assert_marlin(quantised, scheme, *repacked, layer.weight_scale, zeros)


@each_scheme
def test_experts(scheme: Scheme, repacked: Repacked) -> None:
    """The same of experts, as SGLang's loader hands them on: transposed, but for zero points."""
    method = PackedConfig(quant_of(scheme))._experts_scheme()
    layer: Any = nn.Module()
    layer.moe_tp_size = 1
    layer.intermediate_size_per_partition = OUT // 2
    method.create_weights(layer, EXPERTS, IN, OUT // 2, torch.bfloat16)
    drawn_experts = []
    for expert in range(EXPERTS):
        module = f"model.layers.0.mlp.experts.{expert}.gate_proj"
        drawn_experts.append(drawn(module, scheme))
        for name, tensor in read(module, scheme, drawn_experts[-1]).items():
            transposed = tensor if "zero" in name else tensor.t()
            layer.get_parameter(f"w13_{name}").data[expert].copy_(transposed)
    method.process_weights_after_loading(layer)
    for expert, quantised in enumerate(drawn_experts):
        zeros = None if scheme.symmetric else layer.w13_weight_zero_point[expert]
        scales = layer.w13_weight_scale[expert]
        assert_marlin(quantised, scheme, repacked[expert], scales, zeros)


def test_which_layers() -> None:
    """Red if kv_b_proj, which arrives dequantised, gets a packed method, or a layer that
    config.json leaves out."""
    scheme = Scheme("gptq", left_out=("mlps",))
    config = PackedConfig(quant_of(scheme))
    attention = "model.layers.3.self_attn.1"
    assert config._quantises(f"{attention}.fused_qkv_a_proj_with_mqa")
    assert config._quantises("model.layers.3.mlp.experts")
    assert not config._quantises(f"{attention}.kv_b_proj")
    assert not config._quantises("model.layers.3.mlps.0.gate_up_proj")
    assert config.get_quant_method(nn.Embedding(1, 1), "lm_head") is None
