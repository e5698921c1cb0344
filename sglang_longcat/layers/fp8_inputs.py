"""Block-FP8 layers whose input arrives already quantised, by the kernel that produced it.

SGLang quantises a layer's input, per token and group of 128, in a launch before each GEMM. Two
library kernels can do it while they produce the input: flashinfer's residual add + RMSNorm, and
SGLang's SwiGLU + quantisation, which SGLang itself uses on Blackwell only.

The quantised values and their scales (a pair) travel with the activation, as an attribute of the
bf16 tensor, through SGLang's layer boundaries. The router, and every layer that cannot use the
pair, read the tensor. A boundary that moves rows makes another tensor, which has no pair; the GEMM
then quantises as before. Owns which layers and steps do so. Weights, GEMMs and their choice are
SGLang's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from flashinfer.norm import fused_add_rmsnorm_fp8_block_quant
from sglang.kernels.ops.quantization.per_token_group_quant import per_token_group_quant
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod, Fp8MoEMethod
from sglang.srt.layers.quantization.fp8_utils import deepgemm_w8a8_block_fp8_linear_with_fallback
from sglang.srt.runtime_context import get_platform

from longcat_kernels.fp8_layout import GROUP, Pair, scale_rows, scales_of
from sglang_longcat.layers.operations import is_enabled
from sglang_longcat.layers.step import is_deterministic

_PAIR = "longcat_fp8_pair"
_BLOCK = [128, 128]
NORM_COLUMNS = 256  # flashinfer's norm takes multiples: a warp, 8 elements a thread
GEMM_ROWS = 64  # SGLang gives weights with a multiple of so many rows to DeepGEMM


class Fp8PairMethod(Fp8LinearMethod):
    """SGLang's method, which uses the pair of an activation that carries one."""

    def apply(self, layer: Any, x: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
        return cast(torch.Tensor, super().apply(layer, pair_of(x) or x, bias))


class Fp8Norm(RMSNorm):
    """norm(x + residual), with a pair where a layer that reads the result takes one."""

    _readers: tuple[Callable[[torch.Tensor], bool], ...] = ()

    def feed(self, *readers: Callable[[torch.Tensor], bool]) -> None:
        """Name the readers of the result that may take a pair: each says whether it does so for an
        activation of this size. Any other reader reads bf16."""
        self._readers = readers if self.hidden_size % NORM_COLUMNS == 0 else ()

    def feeds_fp8(self, x: torch.Tensor) -> bool:
        """Whether a reader takes a pair in this step."""
        return any(reads(x) for reads in self._readers)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, *rest: Any, **options: Any
    ) -> Any:
        plain = all(value is None for value in (*rest, *options.values()))
        if (
            residual is None
            or not plain
            or not self.feeds_fp8(x)
            or not use_fused_quantisation("fp8_norm", x)
        ):
            return super().forward(x, residual, *rest, **options)
        normed, pair = add_norm_quantise(x, residual, self.weight.data, self.variance_epsilon)
        setattr(normed, _PAIR, pair)
        return normed, residual


def pair_of(x: Any) -> Pair | None:
    """The pair that an activation carries; None without one."""
    return getattr(x, _PAIR, None)


def install_pair_method(*layers: torch.nn.Module | None) -> None:
    """Let block-FP8 layers take pairs. Call it after the weights were created: SGLang chooses how
    to load them by the name of the layer's method."""
    if is_deterministic():
        return
    for layer in layers:
        method: Any = getattr(layer, "quant_method", None)
        if layer is not None and type(method) is Fp8LinearMethod and uses_deep_gemm(layer):
            layer.quant_method = Fp8PairMethod(method.quant_config)


def accepts_pair(layer: torch.nn.Module) -> bool:
    """True for a linear layer with our pair method, and for block-FP8 experts on SGLang's Triton
    runner."""
    if isinstance(layer, FusedMoE):
        return _experts_accept_pair(layer)
    return isinstance(getattr(layer, "quant_method", None), Fp8PairMethod)


def use_fused_quantisation(op: str, x: torch.Tensor) -> bool:
    """Whether the producer of this call quantises, given that its consumers accept pairs."""
    is_matrix = x.ndim == 2 and x.shape[0] > 0 and x.stride(1) == 1
    return is_matrix and _is_gpu_bf16(x) and not torch.compiler.is_compiling() and is_enabled(op)


def add_norm_quantise(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, Pair]:
    """residual += x, in place. Returns norm(residual) in x.dtype, and the same quantised."""
    tokens, width = x.shape
    normed, q = torch.empty_like(x), torch.empty_like(x, dtype=torch.float8_e4m3fn)
    rows = scale_rows(tokens, width, x.device)
    fused_add_rmsnorm_fp8_block_quant(q, rows, normed, x, residual, weight, eps)
    return normed, (q, scales_of(rows, tokens))


def quantise(x: torch.Tensor) -> Pair:
    """The launch that SGLang has before a GEMM. x: [T, C] bf16."""
    pair = per_token_group_quant(x, group_size=GROUP, column_major_scales=True)
    return cast(Pair, pair)


def swiglu_quantise(gate_up: torch.Tensor) -> Pair:
    """silu(gate) * up, rounded as SGLang's activation rounds it, quantised. gate_up: [T, 2 C]."""
    pair = per_token_group_quant(
        gate_up,
        group_size=GROUP,
        column_major_scales=True,
        fuse_silu_and_mul=True,
        silu_and_mul_mode="dense",
    )
    return cast(Pair, pair)


def _is_gpu_bf16(x: torch.Tensor) -> bool:
    """DeepGEMM returns bf16, so the layers around it read bf16."""
    return x.is_cuda and x.dtype == torch.bfloat16


def uses_deep_gemm(layer: Any) -> bool:
    """True for DeepGEMM with fp32 scales, as SGLang chooses it on Hopper for 128 x 128 blocks.
    False for power-of-two scales (`scale_fmt` ue8m0, Blackwell): they round activations in another
    way."""
    method, (rows, columns) = layer.quant_method, layer.weight.shape
    return (
        get_platform().is_sm90
        and method.w8a8_block_fp8_linear is deepgemm_w8a8_block_fp8_linear_with_fallback
        and method.weight_block_size == _BLOCK
        and not (method.use_marlin or method.use_mxfp8 or method.block_fp8_as_mxfp8)
        and rows % GEMM_ROWS == 0
        and columns % GROUP == 0
    )


def _experts_accept_pair(experts: Any) -> bool:
    """The conditions under which SGLang itself quantises once for DeepSeek's shared and routed
    experts."""
    method, backend = experts.quant_method, experts.runner_backend
    return (
        type(method) is Fp8MoEMethod
        and method.block_quant
        and not method.use_mxfp8
        and method.quant_config.weight_block_size == _BLOCK
        and backend is not None
        and backend.is_triton()
        and getattr(experts, "w13_input_scale", None) is None
        and not experts.moe_runner_config.apply_router_weight_on_input
        and not is_deterministic()
    )
