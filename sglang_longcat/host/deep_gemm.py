"""Which GEMMs this server gives to DeepGEMM: every projection in block FP8, and the experts where
`--moe-runner-backend deep_gemm` computes them.

The shapes are read off the layers that were built, so tensor parallelism and layers that stay in
bf16 need no formula here. Numbers of tokens are all that can reach a layer. Steps of few tokens
that our own kernels compute are among them: DeepGEMM takes the same kernel for up to 16 rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.layers.deep_gemm_wrapper import get_contiguous_layout_alignment
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.moe_runner.deep_gemm import _get_compact_all_tokens
from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod, Fp8MoEMethod
from sglang.srt.runtime_context import get_parallel, get_schedule, get_spec
from torch import nn

from longcat_kernels.deep_gemm_cache import Gemm, dense_gemms
from sglang_longcat.layers.fp8_inputs import uses_deep_gemm


def gemms(layers: nn.Module, hidden: int) -> tuple[Gemm, ...]:
    """Empty if nothing is DeepGEMM's: other quantisations, other GPUs than Hopper."""
    tokens, shapes = most_tokens(), dense_shapes(layers)
    if shapes and get_spec().speculative_algorithm:
        shapes.add((hidden, 2 * hidden))  # the draft's eh_proj; its other layers are alike
    prefix = envs.SGLANG_MAX_KV_CHUNK_CAPACITY.get()  # tokens of a cached prefix, for kv_b_proj
    experts = [gemm for layer in layers.modules() for gemm in expert_gemms(layer, tokens)]
    return (*dense_gemms(sorted(shapes), max(tokens, prefix)), *dict.fromkeys(experts))


def most_tokens() -> int:
    """The largest number of rows that a layer gets in one forward: a prefill's chunk, of all
    data-parallel ranks together. Decode and verify steps have fewer."""
    schedule = get_schedule()
    chunk = schedule.chunked_prefill_size or 0
    rank = chunk if chunk > 0 else schedule.max_prefill_tokens
    return int(rank * get_parallel().attn_dp_size)


def dense_shapes(layers: nn.Module) -> set[tuple[int, int]]:
    """Weights [n, k], on this rank."""
    linear: list[Any] = [
        layer
        for layer in layers.modules()
        if isinstance(getattr(layer, "quant_method", None), Fp8LinearMethod)
    ]
    return {tuple(layer.weight.shape) for layer in linear if uses_deep_gemm(layer)}


def expert_gemms(layer: Any, tokens: int) -> Iterator[Gemm]:
    """SGLang's runner chooses between two layouts by free memory, so both count. The number of rows
    is what SGLang expects of an expert (masked), or what the padded experts may take together."""
    if not _computes_experts(layer):
        return
    config = layer.moe_runner_config
    slots = [count * config.top_k for count in range(1, tokens + 1)]
    expected = sorted({max(1, -(-count // config.num_experts)) for count in slots})
    padded: dict[int, set[int]] = {}
    for count in slots:
        alignment = get_contiguous_layout_alignment(count, config.num_local_experts)
        rows = _get_compact_all_tokens(count, config.num_local_experts, alignment)
        padded.setdefault(alignment, set()).add(rows)
    for groups, n, k in (tuple(layer.w13_weight.shape), tuple(layer.w2_weight.shape)):
        yield Gemm("masked", n, k, tuple(expected), groups)
        for alignment, rows_of in padded.items():
            yield Gemm("contiguous", n, k, tuple(sorted(rows_of)), groups, alignment)


def _computes_experts(layer: Any) -> bool:
    return (
        isinstance(layer, FusedMoE)
        and isinstance(layer.quant_method, Fp8MoEMethod)
        and layer.quant_method.block_quant
        and layer.runner_backend is not None
        and layer.runner_backend.is_deep_gemm()
    )
