"""MLA decode: ours against flashinfer's MLA kernel, one attention of a step.

The `flashinfer` column reads the same pages with page size 1, as SGLang does; its plan is made
beforehand. SGLang's `--attention-backend fa3` and `flashmla` take 22 and 37 us at batch 1. Columns
with `+bmm` multiply by w_vc in a launch of torch's. `ours+values` does what a step does: up to 4
tokens the second launch of ours multiplies. Every copy of the inputs has its own weights, so that
they are cold, as a layer's are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels import lite
from longcat_kernels.mla_decode import mla_decode, project_values, reference, workloads

Shape = tuple[int, int, int]
K = 1024
# Requests, query tokens of each, cached tokens of each.
SHAPES = [
    *((b, 1, 4 * K) for b in (1, 2, 4, 8, 16, 30, 64)),
    *((1, 1, n * K) for n in (1, 16, 32, 128)),
    (4, 1, 16 * K),
    *((b, 4, 4 * K) for b in (1, 2, 4, 8, 30)),
    *((1, 4, n * K) for n in (8, 16)),
]
# Long contexts, which FP8 rows of the KV pool are for.
LONG = [
    (b, width, n * K)
    for b, n in ((1, 32), (1, 128), (1, 250), (8, 64), (30, 16))
    for width in (1, 4)
]


def cases(shapes: Sequence[Shape], *, fp8: bool = False) -> list[Case]:
    return [
        Case(
            label(*shape),
            shape[0] * shape[1],
            workloads.bytes_moved(*of(shape), fp8=fp8),
            workloads.flops(*of(shape)),
        )
        for shape in shapes
    ]


def label(requests: int, width: int, context: int) -> str:
    return f"B {requests} x {width} at {context}"


def of(shape: Shape) -> tuple[list[int], int]:
    return [shape[2]] * shape[0], shape[1]


def make(case: Case, copy: int, device: str, *, fp8: bool = False) -> tuple[workloads.Inputs, int]:
    shape = next(shape for shape in (*SHAPES, *LONG) if label(*shape) == case.shape)
    lengths, width = of(shape)
    return workloads.make_inputs(lengths, seed=copy, device=device, width=width, fp8=fp8), width


def ours(device: str, name: str, *, fp8: bool = False) -> Implementation:
    """ours, ours+bmm, ours+values, or the reference. fp8: rows of the KV pool."""
    op = reference.mla_decode if name == "reference" else mla_decode

    def prepare(case: Case, copy: int) -> Call:
        inputs, width = make(case, copy, device, fp8=fp8)
        options: dict[str, Any] = {"scale": workloads.SCALE, "width": width}
        w_vc = workloads.make_values(seed=copy, device=device) if "+" in name else None
        if name == "ours+bmm":
            assert w_vc is not None
            return lambda: project_values(op(*inputs, **options), w_vc)
        return lambda: op(*inputs, **options, w_vc=w_vc)

    return Implementation(name, prepare, cuda_only=name != "reference")


def plan(workspace: torch.Tensor, inputs: workloads.Inputs, width: int) -> Any:
    """flashinfer's wrapper, with a plan for requests that fill the page table."""
    from flashinfer.mla import BatchMLAPagedAttentionWrapper

    pages = inputs.pages[inputs.requests]
    requests, context = pages.shape
    step = torch.arange(requests + 1, dtype=torch.int32, device=pages.device)
    lengths = torch.full((requests,), context, dtype=torch.int32, device=pages.device)
    wrapper = BatchMLAPagedAttentionWrapper(workspace, backend="auto")
    sizes = (lite.HEADS, lite.KV_LORA, lite.ROPE, 1, width > 1, workloads.SCALE)
    dtype = torch.bfloat16
    wrapper.plan(step * width, step * context, pages.flatten(), lengths, *sizes, dtype, dtype)
    return wrapper


def flashinfer(device: str, *, values: bool) -> Implementation:
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=device)

    def prepare(case: Case, copy: int) -> Call:
        inputs, width = make(case, copy, device)
        wrapper = plan(workspace, inputs, width)
        c, r = inputs.latents[:, None, : lite.KV_LORA], inputs.latents[:, None, lite.KV_LORA :]
        out = torch.empty_like(inputs.q_nope)
        if not values:
            return lambda: wrapper.run(inputs.q_nope, inputs.q_pe, c, r, out=out)
        w_vc = workloads.make_values(seed=copy, device=device)
        return lambda: project_values(wrapper.run(inputs.q_nope, inputs.q_pe, c, r, out=out), w_vc)

    return Implementation("flashinfer+bmm" if values else "flashinfer", prepare)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    names = ["ours", "ours+bmm", "ours+values"]
    names += ["reference"] if options.device == "cpu" else []
    implementations = [ours(options.device, name) for name in names]
    if options.device == "cuda" and not options.no_sglang:
        implementations += [flashinfer(options.device, values=v) for v in (False, True)]
    rows = run("mla_decode", cases(SHAPES), implementations, options)
    return rows + long_contexts(options)


def long_contexts(options: argparse.Namespace) -> list[Row]:
    """The same shapes with FP8 rows and with bf16 rows. A rate of FP8 counts the bytes of FP8."""
    fp8 = [ours(options.device, "ours+values", fp8=True)]
    plain = [ours(options.device, "ours+values")]
    if options.device == "cpu":
        fp8.append(ours("cpu", "reference", fp8=True))
        plain.append(ours("cpu", "reference"))
    elif not options.no_sglang:
        plain.append(flashinfer(options.device, values=True))
    shapes = SHAPES if options.device == "cpu" else LONG  # a CPU takes minutes for the long ones
    rows = run("mla_decode_fp8_rows", cases(shapes, fp8=True), fp8, options)
    return rows + run("mla_decode_long", cases(shapes), plain, options)


if __name__ == "__main__":
    main()
