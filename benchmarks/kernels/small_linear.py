"""Dense projections of 1 to 32 tokens: the model's, on one rank and on one of two ranks.

`library` is torch's linear (cuBLAS), with SGLang's silu_and_mul for SwiGLU; for `qkv_a` of up to 16
tokens it is the kernel that SGLang has for that. `sglang` is SGLang's kernel for one token
(`--bf16-gemm-backend gemv`), which it compiles at first use. Our kernel also runs the shapes that
the table leaves to the library. `of_peak` is the share of the roofline.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.small_linear import linear, reference, swiglu_linear, workloads

SHAPES = {f"{s.name} {s.rows}x{s.columns}": s for s in (*workloads.LITE, *workloads.LITE_TP2)}


def cases() -> list[Case]:
    return [
        Case(name, tokens, workloads.bytes_moved(tokens, shape), workloads.flops(tokens, shape))
        for name, shape in SHAPES.items()
        for tokens in workloads.BATCHES
    ]


def inputs(
    case: Case, copy: int, device: str
) -> tuple[workloads.Shape, torch.Tensor, torch.Tensor]:
    shape = SHAPES[case.shape]
    x, weight = workloads.make_inputs(
        case.tokens, shape.rows, shape.columns, seed=copy, device=device
    )
    return shape, x, weight


def ours(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        shape, x, weight = inputs(case, copy, device)
        op = swiglu_linear if shape.op == "swiglu_linear" else linear
        return lambda: op(x, weight)

    return Implementation("ours", prepare)


def plain(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        shape, x, weight = inputs(case, copy, device)
        op = reference.swiglu_linear if shape.op == "swiglu_linear" else reference.linear
        return lambda: op(x, weight)

    return Implementation("reference", prepare, cuda_only=False)


def library(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        return library_call(*inputs(case, copy, device))

    return Implementation("library", prepare)


def library_call(
    shape: workloads.Shape, x: torch.Tensor, weight: torch.Tensor, _scales: None = None
) -> Call:
    if shape.name == "qkv_a" and x.shape[0] <= workloads.FUSED_A_TOKENS:
        from sglang.kernels.ops.gemm.fused_a_gemm import dsv3_fused_a_gemm

        return lambda: dsv3_fused_a_gemm(x, weight.t())
    if shape.op == "linear":
        return lambda: torch.nn.functional.linear(x, weight)
    from sgl_kernel import silu_and_mul

    return lambda: silu_and_mul(torch.nn.functional.linear(x, weight))


def sglang(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        from sgl_kernel import silu_and_mul
        from sglang.kernels.ops.gemm.hopper_bf16_gemv import hopper_bf16_gemv

        shape, x, weight = inputs(case, copy, device)
        if case.tokens > 1:
            raise RuntimeError("one token only")
        if shape.op == "linear":
            return lambda: hopper_bf16_gemv(x, weight)
        return lambda: silu_and_mul(hopper_bf16_gemv(x, weight))

    return Implementation("sglang", prepare)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    implementations = [make(options.device) for make in (ours, plain, library)]
    if not options.no_sglang:
        implementations.append(sglang(options.device))
    return run("small_linear", cases(), implementations, options)


if __name__ == "__main__":
    main()
