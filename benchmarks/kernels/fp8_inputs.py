"""Activations for block-FP8 GEMMs: residual add + norm, and SwiGLU, each with its quantisation.

`library` is the single launch of `sglang_longcat/layers/fp8_inputs.py` (flashinfer's norm; SGLang's
SwiGLU + quantisation in its dense mode). `sglang` is the two launches that SGLang makes on Hopper.
Both write the norm's bf16 result, because the router reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.kernels import fp8_producers
from benchmarks.kernels.fp8_producers import Inputs, make_inputs
from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels import lite
from longcat_kernels.fp8_layout import GROUP, quantise, scale_rows

LAYOUT = {"column_major_scales": True, "scale_tma_aligned": True}


def norm_cases() -> list[Case]:
    return [
        Case(f"T {n}", n, fp8_producers.bytes_normed(n), flops=0) for n in fp8_producers.BATCHES
    ]


def swiglu_cases() -> list[Case]:
    return [
        Case(f"T {n}", n, fp8_producers.bytes_swiglu(n), flops=0) for n in fp8_producers.BATCHES
    ]


def implementation(
    name: str, device: str, make: Callable[[Inputs], Call], *, cuda_only: bool = True
) -> Implementation:
    """`make(inputs)` imports and allocates; the call that it returns is timed."""

    def prepare(case: Case, copy: int) -> Call:
        return make(make_inputs(case.tokens, seed=copy, device=device))

    return Implementation(name, prepare, cuda_only=cuda_only)


def plain_norm(inputs: Inputs) -> Call:
    return lambda: quantise(
        fp8_producers.add_norm(inputs.x, inputs.residual, inputs.weight, lite.EPS)[0]
    )


def library_norm(inputs: Inputs) -> Call:
    from flashinfer.norm import fused_add_rmsnorm_fp8_block_quant

    normed, q = torch.empty_like(inputs.x), torch.empty_like(inputs.x, dtype=torch.float8_e4m3fn)
    scales = scale_rows(len(inputs.x), inputs.x.shape[1], inputs.x.device)
    return lambda: fused_add_rmsnorm_fp8_block_quant(
        q, scales, normed, inputs.x, inputs.residual, inputs.weight, lite.EPS
    )


def sglang_norm(inputs: Inputs) -> Call:
    from sgl_kernel import fused_add_rmsnorm
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8

    def call() -> object:
        fused_add_rmsnorm(inputs.x, inputs.residual, inputs.weight, lite.EPS)
        return sglang_per_token_group_quant_fp8(inputs.x, GROUP, **LAYOUT)

    return call


def plain_swiglu(inputs: Inputs) -> Call:
    return lambda: quantise(fp8_producers.swiglu(inputs.gate_up))


def library_swiglu(inputs: Inputs) -> Call:
    from sglang.kernels.ops.quantization.per_token_group_quant import per_token_group_quant

    return lambda: per_token_group_quant(
        inputs.gate_up,
        group_size=GROUP,
        column_major_scales=True,
        fuse_silu_and_mul=True,
        silu_and_mul_mode="dense",
    )


def sglang_swiglu(inputs: Inputs) -> Call:
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8
    from sglang.srt.layers.activation import silu_and_mul

    return lambda: sglang_per_token_group_quant_fp8(silu_and_mul(inputs.gate_up), GROUP, **LAYOUT)


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
