"""Projections from 4-bit weights: our kernel for few tokens, SGLang's Marlin otherwise.

The kernel (`longcat_kernels.packed_linear`) reads the weights as SGLang has repacked them for
Marlin, so that there is one copy. It serves symmetric weights without act-order, for the shapes and
numbers of tokens at which it beat Marlin: `use_packed_linear` decides. Parameters, loading and
repacking are SGLang's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsLinearMethod,
)
from sglang.srt.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16

from longcat_kernels.packed_linear import Packed, is_faster, linear
from longcat_kernels.packed_linear.configs import GROUPS
from sglang_longcat.layers.operations import is_enabled

if TYPE_CHECKING:
    from longcat_kernels.small_linear.configs import Op


class SmallPackedMethod(CompressedTensorsLinearMethod):
    """SGLang's method for 4-bit weights, with our kernel where it is faster."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config)
        self.op: Op = op

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if bias is None and self.op == "linear" and use_packed_linear(layer, x):
            return linear(x, packed_weight(layer))
        return super().apply(layer, x, bias)


def install_packed_method(*layers: Any, op: Op) -> None:
    """Give 4-bit layers our method, if their weights are of a kind that the kernel reads."""
    for layer in layers:
        method = layer.quant_method
        if type(method) is CompressedTensorsLinearMethod and _is_readable(layer.scheme):
            layer.quant_method = SmallPackedMethod(method.quant_config, op)


def _is_readable(scheme: Any) -> bool:
    """Symmetric in 4 bits, no act-order, and a number of inputs a group that the kernel takes. The
    table has no shape with a single group, whose scales Marlin keeps in another order."""
    return (
        type(scheme) is CompressedTensorsWNA16
        and scheme.pack_factor == 8
        and scheme.symmetric
        and not scheme.has_g_idx
        and scheme.group_size in GROUPS
    )


def use_packed_linear(layer: torch.nn.Module, x: Any) -> bool:
    """Whether this call runs our kernel. It does not for layers that LoRA has wrapped, other types
    and shapes at which Marlin is as fast."""
    return (
        isinstance(x, torch.Tensor)
        and x.is_cuda
        and isinstance(layer, LinearBase)
        and x.ndim == 2
        and x.dtype == torch.bfloat16
        and isinstance(layer.quant_method, SmallPackedMethod)
        and is_faster(layer.quant_method.op, packed_weight(layer), x.shape[0])
        and not torch.compiler.is_compiling()
        and is_enabled("small_linear")
    )


def packed_weight(layer: Any) -> Packed:
    """The parameters of a layer after SGLang has repacked them."""
    return Packed(layer.weight_packed, layer.weight_scale)
