"""Dense MLP and projections that take our kernels for a few tokens, SGLang's path otherwise.

The kernels (`longcat_kernels.small_linear`) are for bf16 on a GPU and for the shapes and numbers of
tokens at which they beat cuBLAS. `takes_kernel` decides; weights, their loading, tensor parallelism
and everything quantised stay SGLang's. `--bf16-gemm-backend torch` switches the kernels off.
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
from sglang.srt.runtime_context import get_exec

from longcat_kernels.small_linear import linear, pays, swiglu_linear
from sglang_longcat import env
from sglang_longcat.layers.fp8_inputs import accepts_pair, prefer_pairs, quantises, swiglu_quantise

if TYPE_CHECKING:
    from longcat_kernels.small_linear.configs import Op


class SmallLinearMethod(UnquantizedLinearMethod):
    """SGLang's method for unquantised weights, with our kernel where it is faster."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if bias is None and takes_kernel("linear", layer, x):
            return linear(x, layer.weight)
        return super().apply(layer, x, bias)


class LongcatMLP(upstream.LongcatFlashMLP):
    """down(silu(gate x) * up x); the first half is one kernel for a few tokens, in block FP8 SwiGLU
    quantises for down."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        prefer_kernels(self.gate_up_proj, self.down_proj)
        prefer_pairs(self.gate_up_proj, self.down_proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if takes_kernel("swiglu_linear", self.gate_up_proj, x):
            return self.down_proj(swiglu_linear(x, self.gate_up_proj.weight))[0]
        if accepts_pair(self.down_proj) and quantises("fp8_swiglu", x):
            return self.down_proj(swiglu_quantise(self.gate_up_proj(x)[0]))[0]
        return super().forward(x)


def prefer_kernels(*layers: torch.nn.Module) -> None:
    """Let unquantised layers take our kernels; their weights have to be created already, because
    SGLang chooses how to load them by the method's name. Deterministic inference keeps one kernel
    for all batch sizes."""
    if get_exec().deterministic.enable_deterministic_inference:
        return
    for layer in layers:
        if type(layer.quant_method) is UnquantizedLinearMethod:
            layer.quant_method = SmallLinearMethod()


def takes_kernel(op: Op, layer: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether this call runs our kernel. No: layers that LoRA has wrapped, quantised layers, other
    types, a GEMM backend that the user chose, and shapes that cuBLAS serves as well."""
    return (
        x.is_cuda
        and isinstance(layer, LinearBase)
        and isinstance(layer.quant_method, SmallLinearMethod)
        and x.ndim == 2
        and x.dtype == layer.weight.dtype == torch.bfloat16
        and pays(op, layer.weight, x.shape[0])
        and layer.weight.is_contiguous()
        and get_bf16_gemm_backend().is_auto()
        and not torch.compiler.is_compiling()
        and env.takes_ours("small_linear")
    )
