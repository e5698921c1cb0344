"""Dense projections of 1 to 4 tokens from 4-bit weights.

`library` is SGLang's Marlin, as its W4A16 layers call it, with SGLang's silu_and_mul for SwiGLU.
Our kernel also runs the shapes that the table leaves to Marlin.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.packed_linear import linear, marlin, reference, swiglu_linear, workloads
from longcat_kernels.packed_linear.configs import TOKENS
from longcat_kernels.packed_linear.marlin import Packed
from longcat_kernels.small_linear.workloads import LITE, Shape, flops

SHAPES = {f"{s.name} {s.rows}x{s.columns}": s for s in LITE}


def cases() -> list[Case]:
    return [
        Case(name, tokens, workloads.bytes_moved(tokens, shape), flops(tokens, shape))
        for name, shape in SHAPES.items()
        for tokens in TOKENS
    ]


def inputs(case: Case, copy: int, device: str) -> tuple[Shape, torch.Tensor, Packed]:
    shape = SHAPES[case.shape]
    weight = workloads.make_weight(shape.rows, shape.columns, seed=copy, device=device)
    return shape, workloads.make_x(case.tokens, shape.columns, seed=copy, device=device), weight


def ours(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        shape, x, weight = inputs(case, copy, device)
        op = swiglu_linear if shape.op == "swiglu_linear" else linear
        return lambda: op(x, weight)

    return Implementation("ours", prepare)


def plain(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        shape, x, weight = inputs(case, copy, device)
        op = reference.OPS[shape.op]
        return lambda: op(x, weight)

    return Implementation("reference", prepare, cuda_only=False)


def library(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        return library_call(*inputs(case, copy, device))

    return Implementation("library", prepare)


def library_call(shape: Shape, x: torch.Tensor, weight: Packed) -> Call:
    """What SGLang launches: Marlin, and the activation for SwiGLU."""
    multiply = marlin_call(x, weight)
    if shape.op == "linear":
        return multiply
    from sgl_kernel import silu_and_mul

    return lambda: silu_and_mul(multiply())


def marlin_call(x: torch.Tensor, weight: Packed) -> functools.partial[torch.Tensor]:
    """SGLang's Marlin for a layer as `CompressedTensorsWNA16` has it after loading."""
    import sglang.srt.layers.quantization  # noqa: F401 - first: it and marlin_utils import each other
    from sglang.srt.layers.quantization import marlin_utils
    from sglang.srt.layers.quantization.utils import get_scalar_types

    none = marlin_utils.marlin_make_empty_g_idx(x.device)
    return functools.partial(
        marlin_utils.apply_gptq_marlin_linear,
        input=x,
        weight=weight.words,
        weight_scale=weight.scales,
        weight_zp=none,
        g_idx=none,
        g_idx_sort_indices=none,
        workspace=_workspace(x.device),
        wtype=get_scalar_types()[1].uint4b8,
        output_size_per_partition=marlin.outputs(weight.words),
        input_size_per_partition=marlin.inputs(weight.words),
        is_k_full=True,
    )


@functools.cache
def _workspace(device: torch.device) -> torch.Tensor:
    """Zeros, which each launch of Marlin leaves as it found them."""
    from sglang.srt.layers.quantization import marlin_utils

    return marlin_utils.marlin_make_workspace(device)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    implementations = [make(options.device) for make in (ours, plain)]
    if not options.no_sglang:
        implementations.append(library(options.device))
    return run("packed_linear", cases(), implementations, options)


if __name__ == "__main__":
    main()
