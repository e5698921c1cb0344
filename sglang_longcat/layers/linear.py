"""Dense MLP and projections: our kernels for few tokens, SGLang's path otherwise.

The kernels (`longcat_kernels.small_linear`) are for bf16 on a GPU, and for the shapes and numbers
of tokens at which they beat cuBLAS. `use_small_linear` decides. Weights, their loading, tensor
parallelism and everything quantised are SGLang's. `--bf16-gemm-backend torch` switches the kernels
off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.quantization.unquant import (
    UnquantizedLinearMethod,
    get_bf16_gemm_backend,
)
from sglang.srt.models import longcat_flash as upstream

from longcat_kernels.small_linear import is_faster, linear, swiglu_linear
from sglang_longcat.layers.fp8_inputs import (
    accepts_pair,
    install_pair_method,
    swiglu_quantise,
    use_fused_quantisation,
)
from sglang_longcat.layers.operations import is_enabled
from sglang_longcat.layers.step import is_deterministic

if TYPE_CHECKING:
    from longcat_kernels.small_linear.configs import Op


class SmallLinearMethod(UnquantizedLinearMethod):
    """SGLang's method for unquantised weights, with our kernel where it is faster."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if bias is None and use_small_linear("linear", layer, x):
            return linear(x, layer.weight)
        return super().apply(layer, x, bias)


class LongcatMLP(upstream.LongcatFlashMLP):
    """down(silu(gate x) * up x). For few tokens the first half is one kernel of ours. In block FP8
    the SwiGLU kernel also quantises the input of `down`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        install_small_linear(self.gate_up_proj, self.down_proj)
        install_pair_method(self.gate_up_proj, self.down_proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if use_small_linear("swiglu_linear", self.gate_up_proj, x):
            return self.down_proj(swiglu_linear(x, self.gate_up_proj.weight))[0]
        if accepts_pair(self.down_proj) and use_fused_quantisation("fp8_swiglu", x):
            return self.down_proj(swiglu_quantise(self.gate_up_proj(x)[0]))[0]
        return super().forward(x)


def install_small_linear(*layers: torch.nn.Module) -> None:
    """Let unquantised layers use our kernels. Call it after the weights were created: SGLang
    chooses how to load them by the name of the layer's method."""
    if is_deterministic():
        return
    for layer in layers:
        if type(layer.quant_method) is UnquantizedLinearMethod:
            layer.quant_method = SmallLinearMethod()


def use_small_linear(op: Op, layer: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether this call runs our kernel. It does not for layers that LoRA has wrapped, quantised
    layers, other types, a GEMM backend that the user chose, and shapes at which cuBLAS is as
    fast."""
    return (
        x.is_cuda
        and isinstance(layer, LinearBase)
        and isinstance(layer.quant_method, SmallLinearMethod)
        and x.ndim == 2
        and x.dtype == layer.weight.dtype == torch.bfloat16
        and is_faster(op, layer.weight, x.shape[0])
        and layer.weight.is_contiguous()
        and get_bf16_gemm_backend().is_auto()
        and not torch.compiler.is_compiling()
        and is_enabled("small_linear")
    )
