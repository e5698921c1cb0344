"""The final sum of a mixture of experts: expert outputs, identity part, dense branch.

The `sglang` column is what `finalize` replaces: SGLang's sum over slots, our identity kernel and
torch's add. SGLang reads all 12 rows of a token, of which a third are zeros; `bytes` counts the
other 8. The columns with a norm also do the residual add and RMSNorm that follow: `ours+norm` in
the same launch, `ours, norm` in a launch of flashinfer's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.expert_sum import add_identity_, finalize, finalize_norm, reference, workloads
from longcat_kernels.lite import EPS

TRITON_SUM = 32  # tokens up to which SGLang takes its Triton kernel for the sum, on Hopper


def cases() -> list[Case]:
    return [
        Case(f"T {tokens}", tokens, workloads.bytes_moved(tokens), workloads.flops(tokens))
        for tokens in workloads.BATCHES
    ]


def ours(device: str, *, plain: bool) -> Implementation:
    op = reference.finalize if plain else finalize

    def prepare(case: Case, copy: int) -> Call:
        given = workloads.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: op(given.routed, given.ids, given.x, given.weight, given.addend)

    return Implementation("reference" if plain else "ours", prepare, cuda_only=not plain)


def with_norm(device: str, *, fused: bool) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        given = workloads.make_inputs(case.tokens, seed=copy, device=device)
        residual, weight = torch.zeros_like(given.x), torch.ones_like(given.x[0])
        inputs = given.routed, given.ids, given.x, given.weight, given.addend
        if fused:
            return lambda: finalize_norm(*inputs, residual=residual, norm_weight=weight, eps=EPS)
        from flashinfer.norm import fused_add_rmsnorm

        return lambda: fused_add_rmsnorm(finalize(*inputs), residual, weight, EPS, enable_pdl=True)

    return Implementation("ours+norm" if fused else "ours, norm", prepare)


def in_tree(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        from sgl_kernel import moe_sum_reduce
        from sglang.kernels.ops.moe.fused_moe_triton_kernels import moe_sum_reduce_triton

        given = workloads.make_inputs(case.tokens, seed=copy, device=device)
        routed = given.routed.nan_to_num(0.0)
        reduce = moe_sum_reduce_triton if case.tokens <= TRITON_SUM else moe_sum_reduce
        out = torch.empty_like(given.x)

        def call() -> torch.Tensor:
            reduce(routed, out, 1.0)
            add_identity_(out, given.x, given.weight)
            return out.add_(given.addend)

        return call

    return Implementation("sglang", prepare)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    implementations = [ours(options.device, plain=plain) for plain in (False, True)]
    implementations.append(with_norm(options.device, fused=True))
    if not options.no_sglang:
        implementations += [with_norm(options.device, fused=False), in_tree(options.device)]
    return run("expert_finalize", cases(), implementations, options)


if __name__ == "__main__":
    main()
