"""Dense MLP and projections: our kernels for few tokens, SGLang's path otherwise.

The kernels (`longcat_kernels.small_linear`) read bf16 or block-FP8 weights on a GPU, for the shapes
and numbers of tokens at which they beat cuBLAS or DeepGEMM. Most take bf16 activations, so nothing
quantises these beforehand: `use_small_linear` decides. For block FP8 others take the pair that
DeepGEMM would take: `use_pair_linear` decides, and comes first. 4-bit weights have a kernel and a
method of their own (`packed_linear.py`). Weights, their loading, tensor parallelism and other
quantisations are SGLang's. `--bf16-gemm-backend torch` switches the kernels
for bf16 weights off.
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

from longcat_kernels.packed_linear import swiglu_linear as packed_swiglu_linear
from longcat_kernels.small_linear import (
    is_faster,
    linear,
    pair_linear,
    pair_swiglu,
    pair_swiglu_bf16,
    swiglu_linear,
)
from longcat_kernels.small_linear.configs import PAIR_OF
from sglang_longcat.layers.fp8_inputs import (
    Fp8PairMethod,
    accepts_pair,
    install_pair_method,
    pair_of,
    quantise,
    swiglu_quantise,
    use_fused_quantisation,
)
from sglang_longcat.layers.operations import is_enabled
from sglang_longcat.layers.packed_linear import (
    install_packed_method,
    packed_weight,
    use_packed_linear,
)
from sglang_longcat.layers.step import is_deterministic

if TYPE_CHECKING:
    from longcat_kernels.fp8_layout import Pair
    from longcat_kernels.small_linear.configs import Op, PairOp


class SmallLinearMethod(UnquantizedLinearMethod):
    """SGLang's method for unquantised weights, with our kernel where it is faster."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op: Op = op

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if bias is None and self.op == "linear" and use_small_linear(layer, x):
            return linear(x, layer.weight)
        return super().apply(layer, x, bias)


class SmallFp8Method(Fp8PairMethod):
    """SGLang's method for block-FP8 weights, with our kernels where they are faster. DeepGEMM takes
    the pair that the activation may carry."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config)
        self.op: Op = op

    def apply(self, layer: Any, x: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
        if bias is None and self.op == "linear" and use_small_linear(layer, x):
            return linear(x, *_fp8_weight(layer))
        if bias is None and self.op == "linear" and use_pair_linear(layer, x):
            return pair_linear(_pair(x), *_fp8_weight(layer))
        return super().apply(layer, x, bias)


class LongcatMLP(upstream.LongcatFlashMLP):
    """down(silu(gate x) * up x). For few tokens the first half is one kernel of ours. In block FP8
    the SwiGLU kernel also quantises the input of `down`, for more tokens."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        install_small_linear(self.gate_up_proj, op="swiglu_linear")
        install_small_linear(self.down_proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if use_small_linear(self.gate_up_proj, x):
            return self.down_proj(swiglu_linear(x, *weight_of(self.gate_up_proj)))[0]
        if use_packed_linear(self.gate_up_proj, x):
            return self.down_proj(packed_swiglu_linear(x, packed_weight(self.gate_up_proj)))[0]
        quantised = reads_pair(self.down_proj, x)
        if use_pair_linear(self.gate_up_proj, x):
            swiglu = pair_swiglu if quantised else pair_swiglu_bf16
            return self.down_proj(swiglu(_pair(x), *_fp8_weight(self.gate_up_proj)))[0]
        if quantised and use_fused_quantisation("fp8_swiglu", x):
            return self.down_proj(swiglu_quantise(self.gate_up_proj(x)[0]))[0]
        return super().forward(x)


def install_small_linear(*layers: Any, op: Op = "linear") -> None:
    """Let unquantised, block-FP8 and 4-bit layers use our kernels. op: "swiglu_linear" if
    `LongcatMLP` calls the kernel instead of the layer. Call it after the weights were created:
    SGLang chooses how to load them by the name of the layer's method."""
    if is_deterministic():
        return
    install_pair_method(*layers)
    install_packed_method(*layers, op=op)
    for layer in layers:
        method = layer.quant_method
        if type(method) is UnquantizedLinearMethod:
            layer.quant_method = SmallLinearMethod(op)
        elif type(method) is Fp8PairMethod:
            layer.quant_method = SmallFp8Method(method.quant_config, op)


def use_small_linear(layer: torch.nn.Module, x: Any) -> bool:
    """Whether this call runs our kernel. It does not for layers that LoRA has wrapped, other
    quantisations and types, x that is a pair, a GEMM backend that the user chose, and shapes at
    which the library is as fast."""
    return (
        isinstance(x, torch.Tensor)
        and x.is_cuda
        and isinstance(layer, LinearBase)
        and x.ndim == 2
        and x.dtype == torch.bfloat16
        and (_is_small_bf16(layer) or isinstance(layer.quant_method, SmallFp8Method))
        and _is_faster_here(layer, layer.quant_method.op, x.shape[0])
        and not use_pair_linear(layer, x)
    )


def use_pair_linear(layer: Any, x: Any) -> bool:
    """Whether this call runs our kernel for inputs that are quantised, whose result is bf16. x: a
    pair, or a tensor with or without one."""
    first = x[0] if isinstance(x, tuple) else x
    return (
        first.is_cuda
        and (isinstance(x, tuple) or x.dtype == torch.bfloat16)
        and isinstance(layer, LinearBase)
        and first.ndim == 2
        and isinstance(layer.quant_method, SmallFp8Method)
        and _is_faster_here(layer, PAIR_OF[layer.quant_method.op], first.shape[0])
    )


def _is_faster_here(layer: LinearBase, op: Op | PairOp, tokens: int) -> bool:
    return (
        is_faster(op, layer.weight, tokens)
        and layer.weight.is_contiguous()
        and not torch.compiler.is_compiling()
        and is_enabled("small_linear")
    )


def _pair(x: Any) -> Pair:
    return x if isinstance(x, tuple) else pair_of(x) or quantise(x)


def _is_small_bf16(layer: LinearBase) -> bool:
    return (
        isinstance(layer.quant_method, SmallLinearMethod)
        and layer.weight.dtype == torch.bfloat16
        and get_bf16_gemm_backend().is_auto()
    )


def weight_of(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The arguments of our kernel: weight, and scales in block FP8."""
    fp8 = isinstance(layer.quant_method, SmallFp8Method)
    return _fp8_weight(layer) if fp8 else (layer.weight, None)


def _fp8_weight(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.weight, layer.weight_scale_inv


def reads_pair(layer: torch.nn.Module, x: Any) -> bool:
    """Whether this call of a layer reads a quantised activation."""
    return accepts_pair(layer) and not use_small_linear(layer, x)
