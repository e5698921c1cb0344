"""Identity experts: add weight * x to the routed part, in place.

The `sglang` column is what its MoE layer does after its zero-expert call, which
`benchmarks.kernels.moe_router` times: scale the routed part, add the identity part.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.expert_sum import add_identity_, reference, workloads
from longcat_kernels.lite import ROUTED_SCALE


def cases() -> list[Case]:
    return [
        Case(
            f"T {tokens}",
            tokens,
            workloads.identity_bytes_moved(tokens),
            workloads.identity_flops(tokens),
        )
        for tokens in workloads.IDENTITY_BATCHES
    ]


def ours(device: str, *, plain: bool) -> Implementation:
    op = reference.add_identity_ if plain else add_identity_

    def prepare(case: Case, copy: int) -> Call:
        out, x, weight = workloads.make_identity_inputs(case.tokens, seed=copy, device=device)
        return lambda: op(out, x, weight)

    return Implementation("reference" if plain else "ours", prepare, cuda_only=not plain)


def in_tree(device: str) -> Implementation:
    """Two torch operators: nothing of SGLang has to be imported."""

    def prepare(case: Case, copy: int) -> Call:
        out, identity_part, _ = workloads.make_identity_inputs(
            case.tokens, seed=copy, device=device
        )
        return lambda: out.mul_(ROUTED_SCALE).add_(identity_part)

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
