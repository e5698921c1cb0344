"""Block-FP8 projections of 1 to 64 tokens whose input is quantised already.

`deep_gemm` is SGLang's GEMM on Hopper. `swap_ab` is flashinfer's, which transposes the product
below 32 tokens (SGLang runs it for `--fp8-gemm-backend flashinfer_deepgemm`, on bf16 inputs that it
quantises in a launch of its own). Both read the same pair. No kernel here is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.fp8_layout import GROUP, quantise, scale_rows, scales_of, widen
from longcat_kernels.small_linear import workloads

SHAPES = {f"{s.name} {s.rows}x{s.columns}": s for s in workloads.LITE}
BATCHES = (1, 2, 4, 8, 16, 31, 32, 64)


def cases() -> list[Case]:
    return [
        Case(name, tokens, bytes_moved(tokens, shape), workloads.flops(tokens, shape))
        for name, shape in SHAPES.items()
        for tokens in BATCHES
    ]


def bytes_moved(tokens: int, shape: workloads.Shape) -> int:
    """The weights and the inputs, a byte an element, their scales, and the bf16 result."""
    weights = shape.rows * shape.columns + 4 * blocks(shape.rows) * blocks(shape.columns)
    return weights + tokens * (shape.columns + 4 * blocks(shape.columns) + 2 * shape.rows)


def blocks(size: int) -> int:
    return -(-size // GROUP)


def inputs(case: Case, copy: int, device: str) -> tuple[torch.Tensor, ...]:
    """q, scales by rows of groups, weight, its scales."""
    shape = SHAPES[case.shape]
    torch.manual_seed(copy)
    q, scales = quantise(torch.randn(case.tokens, shape.columns, device=device))
    rows = scale_rows(case.tokens, shape.columns, device)
    scales_of(rows, case.tokens).copy_(scales)
    weight = torch.randn(shape.rows, shape.columns, device=device).to(torch.float8_e4m3fn)
    return q, rows, weight, torch.rand(blocks(shape.rows), blocks(shape.columns), device=device)


def plain(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        q, rows, weight, scale = inputs(case, copy, device)
        return lambda: multiply(q, scales_of(rows, len(q)), weight, scale)

    return Implementation("reference", prepare, cuda_only=False)


def multiply(
    q: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    wide = scale.repeat_interleave(GROUP, 0)[: len(weight)].repeat_interleave(GROUP, 1)
    return (widen((q, scales)) @ (weight.float() * wide).t()).to(torch.bfloat16)


def deep_gemm(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        import deep_gemm as library

        q, rows, weight, scale = inputs(case, copy, device)
        out = torch.empty(len(q), len(weight), dtype=torch.bfloat16, device=device)
        pair = q, scales_of(rows, len(q))
        return lambda: library.fp8_gemm_nt(pair, (weight, scale), out)

    return Implementation("deep_gemm", prepare)


def library_call(
    shape: workloads.Shape, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor
) -> Call:
    """What SGLang launches behind the kernel that made x, which also quantised it: DeepGEMM, and
    for SwiGLU the activation, which quantises the next layer's input. A draft's head is a copy of a
    bf16 one, which cuBLAS multiplies."""
    if shape.name == "head":
        head = weight.to(torch.bfloat16)
        return lambda: torch.nn.functional.linear(x, head)
    import deep_gemm as library

    pair = quantise(x)
    out = torch.empty(len(x), len(weight), dtype=torch.bfloat16, device=x.device)
    if shape.op == "linear":
        return lambda: library.fp8_gemm_nt(pair, (weight, scale), out)

    def both() -> object:
        from sglang_longcat.layers.fp8_inputs import swiglu_quantise

        library.fp8_gemm_nt(pair, (weight, scale), out)
        return swiglu_quantise(out)

    return both


def swap_ab(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        from flashinfer.gemm import fp8_blockscale_gemm_sm90

        q, rows, weight, scale = inputs(case, copy, device)
        out = torch.empty(len(q), len(weight), dtype=torch.bfloat16, device=device)
        return lambda: fp8_blockscale_gemm_sm90(q, weight, rows, scale, out=out)

    return Implementation("swap_ab", prepare)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    implementations = [make(options.device) for make in (plain, deep_gemm, swap_ab)]
    return run("fp8_linear", cases(), implementations, options)


if __name__ == "__main__":
    main()
