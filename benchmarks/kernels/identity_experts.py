"""Identity experts: add weight * x to the routed part, in place.

The `sglang` column is what its MoE layer does after its zero-expert call (see bench_moe_router.py):
scale the routed part, add the identity part.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.identity_experts import add_identity_, reference
from longcat_kernels.identity_experts import workloads as lite
from longcat_kernels.moe_router.workloads import SCALE


def cases() -> list[Case]:
    return [
        Case(f"T {tokens}", tokens, lite.bytes_moved(tokens), lite.flops(tokens))
        for tokens in lite.BATCHES
    ]


def ours(device: str, *, plain: bool) -> Implementation:
    op = reference.add_identity_ if plain else add_identity_

    def prepare(case: Case, copy: int) -> Call:
        out, x, weight = lite.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: op(out, x, weight)

    return Implementation("reference" if plain else "ours", prepare, cuda_only=not plain)


def in_tree(device: str) -> Implementation:
    """Two torch operators: nothing of SGLang has to be imported."""

    def prepare(case: Case, copy: int) -> Call:
        out, identity_part, _ = lite.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: out.mul_(SCALE).add_(identity_part)

    return Implementation("sglang", prepare)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    implementations = [
        ours(options.device, plain=False),
        ours(options.device, plain=True),
        in_tree(options.device),
    ]
    return run("identity_experts", cases(), implementations, options)


if __name__ == "__main__":
    main()
