"""Activations for block-FP8 GEMMs: residual add + norm, and SwiGLU, each with its quantisation.

`library` is the one launch that `sglang_longcat/layers/fp8_inputs.py` makes (flashinfer's norm,
SGLang's SwiGLU + quantisation in its dense mode), `sglang` the two that SGLang makes on Hopper. The
norm's bf16 result is written by both, because the router reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.fp8_inputs import GROUP, reference, scale_rows
from longcat_kernels.fp8_inputs import workloads as lite
from longcat_kernels.fp8_inputs.workloads import Inputs, make_inputs

LAYOUT = {"column_major_scales": True, "scale_tma_aligned": True}


def norm_cases() -> list[Case]:
    return [Case(f"T {n}", n, lite.bytes_normed(n), flops=0) for n in lite.BATCHES]


def swiglu_cases() -> list[Case]:
    return [Case(f"T {n}", n, lite.bytes_swiglu(n), flops=0) for n in lite.BATCHES]


def implementation(
    name: str, device: str, make: Callable[[Inputs], Call], *, cuda_only: bool = True
) -> Implementation:
    """`make(inputs)` imports and allocates; what it returns is timed."""

    def prepare(case: Case, copy: int) -> Call:
        return make(make_inputs(case.tokens, seed=copy, device=device))

    return Implementation(name, prepare, cuda_only=cuda_only)


def plain_norm(one: Inputs) -> Call:
    return lambda: reference.quantise(
        reference.add_norm(one.x, one.residual, one.weight, lite.EPS)[0]
    )


def library_norm(one: Inputs) -> Call:
    from flashinfer.norm import fused_add_rmsnorm_fp8_block_quant

    normed, q = torch.empty_like(one.x), torch.empty_like(one.x, dtype=torch.float8_e4m3fn)
    scales = scale_rows(*one.x.shape, one.x.device)
    return lambda: fused_add_rmsnorm_fp8_block_quant(
        q, scales, normed, one.x, one.residual, one.weight, lite.EPS
    )


def sglang_norm(one: Inputs) -> Call:
    from sgl_kernel import fused_add_rmsnorm
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8

    def call() -> object:
        fused_add_rmsnorm(one.x, one.residual, one.weight, lite.EPS)
        return sglang_per_token_group_quant_fp8(one.x, GROUP, **LAYOUT)

    return call


def plain_swiglu(one: Inputs) -> Call:
    return lambda: reference.quantise(reference.swiglu(one.gate_up))


def library_swiglu(one: Inputs) -> Call:
    from sglang.kernels.ops.quantization.per_token_group_quant import per_token_group_quant

    return lambda: per_token_group_quant(
        one.gate_up,
        group_size=GROUP,
        column_major_scales=True,
        fuse_silu_and_mul=True,
        silu_and_mul_mode="dense",
    )


def sglang_swiglu(one: Inputs) -> Call:
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8
    from sglang.srt.layers.activation import silu_and_mul

    return lambda: sglang_per_token_group_quant_fp8(silu_and_mul(one.gate_up), GROUP, **LAYOUT)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    device = options.device
    norms = [
        implementation("reference", device, plain_norm, cuda_only=False),
        implementation("library", device, library_norm),
    ]
    swiglus = [implementation("reference", device, plain_swiglu, cuda_only=False)]
    if not options.no_sglang:
        norms.append(implementation("sglang", device, sglang_norm))
        swiglus.append(implementation("library", device, library_swiglu))
        swiglus.append(implementation("sglang", device, sglang_swiglu))
    rows = run("fp8_inputs_norm", norm_cases(), norms, options)
    return rows + run("fp8_inputs_swiglu", swiglu_cases(), swiglus, options)


if __name__ == "__main__":
    main()
