"""Routing: from logits to weights, ids and the identity weight.

The `sglang` column is its native top-k and its zero-expert call, which also writes the identity
part; bench_identity_experts.py times what is left of that. Compare sums of the two benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timing import Call, Case, Implementation, Row, parse, run

from longcat_kernels.identity_experts import workloads as identity
from longcat_kernels.moe_router import reference, route
from longcat_kernels.moe_router import workloads as lite


def cases() -> list[Case]:
    return [
        Case(f"T {tokens}", tokens, lite.bytes_moved(tokens), lite.flops(tokens))
        for tokens in lite.BATCHES
    ]


def ours(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        logits, bias = lite.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: route(logits, bias, top_k=lite.TOP_K, routed=lite.ROUTED, scale=lite.SCALE)

    return Implementation("ours", prepare)


def plain(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        logits, bias = lite.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: reference.route(logits, bias, lite.TOP_K, lite.ROUTED, lite.SCALE)

    return Implementation("reference", prepare, cuda_only=False)


def sglang(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        from sglang.kernels.ops.moe.ep_moe_kernels import zero_experts_compute_triton
        from sglang.srt.layers.moe.topk import fused_topk_torch_native

        logits, bias = lite.make_inputs(case.tokens, seed=copy, device=device)
        hidden = torch.zeros((case.tokens, identity.HIDDEN), dtype=torch.bfloat16, device=device)

        def call() -> torch.Tensor:
            weights, ids = fused_topk_torch_native(hidden, logits, lite.TOP_K, False, bias)
            return zero_experts_compute_triton(ids, weights, lite.ROUTED, "identity", hidden)

        return call

    return Implementation("sglang", prepare)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    implementations = [ours(options.device), plain(options.device)]
    if not options.no_sglang:
        implementations.append(sglang(options.device))
    return run("moe_router", cases(), implementations, options)


if __name__ == "__main__":
    main()
