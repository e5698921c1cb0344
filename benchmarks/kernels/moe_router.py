"""Routing: from logits to weights, ids and the identity weight; and the same from hidden states.

From logits (`moe_router`), the `sglang` column is its native top-k and its zero-expert call. That
call also writes the identity part; `benchmarks.kernels.identity_experts` times what is left of it,
so compare the sums of the two benchmarks. From hidden states (`moe_router_tokens`), `few` and
`many` are the two launches with either kernel for the logits, whatever the batch, to find
FEW_TOKENS; `sglang` is its router GEMM with our routing after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels import lite
from longcat_kernels.moe_router import reference, route, workloads


def cases() -> list[Case]:
    return [
        Case(f"T {tokens}", tokens, workloads.bytes_moved(tokens), workloads.flops(tokens))
        for tokens in workloads.BATCHES
    ]


def ours(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        logits, bias = workloads.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: route(logits, bias, workloads.OPTIONS)

    return Implementation("ours", prepare)


def plain(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        logits, bias = workloads.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: reference.route(logits, bias, workloads.OPTIONS)

    return Implementation("reference", prepare, cuda_only=False)


def sglang(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        from sglang.kernels.ops.moe.ep_moe_kernels import zero_experts_compute_triton
        from sglang.srt.layers.moe.topk import fused_topk_torch_native

        logits, bias = workloads.make_inputs(case.tokens, seed=copy, device=device)
        hidden = torch.zeros((case.tokens, lite.HIDDEN), dtype=torch.bfloat16, device=device)

        def call() -> torch.Tensor:
            weights, ids = fused_topk_torch_native(hidden, logits, lite.TOP_K, False, bias)
            return zero_experts_compute_triton(ids, weights, lite.ROUTED, "identity", hidden)

        return call

    return Implementation("sglang", prepare)


def token_cases() -> list[Case]:
    return [
        Case(
            f"T {tokens}",
            tokens,
            workloads.bytes_moved_from_tokens(tokens),
            workloads.flops_from_tokens(tokens),
        )
        for tokens in workloads.BATCHES
    ]


def ours_from_tokens(kernel: str, device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        from longcat_kernels.moe_router import launch

        x, weight, bias = workloads.make_tokens(case.tokens, seed=copy, device=device)
        logits = getattr(launch, f"{kernel}_logits")
        return lambda: launch.route_sum(logits(x, weight), bias, workloads.OPTIONS)

    return Implementation(kernel, prepare)


def plain_from_tokens(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        inputs = workloads.make_tokens(case.tokens, seed=copy, device=device)
        return lambda: reference.route_tokens(*inputs, workloads.OPTIONS)

    return Implementation("reference", prepare, cuda_only=False)


def torch_from_tokens(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        x, weight, bias = workloads.make_tokens(case.tokens, seed=copy, device=device)
        return lambda: route(reference.logits(x, weight), bias, workloads.OPTIONS)

    return Implementation("torch mm", prepare)


def sglang_from_tokens(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        from sglang.kernels.ops.gemm.bf16_fp32 import linear_bf16_fp32

        x, weight, bias = workloads.make_tokens(case.tokens, seed=copy, device=device)
        # 128 is its model class's choice for these sizes.
        return lambda: route(
            linear_bf16_fp32(x, weight, hpc_kernel_min_m=128), bias, workloads.OPTIONS
        )

    return Implementation("sglang", prepare)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    device = options.device
    from_logits = [ours(device), plain(device)]
    from_tokens = [ours_from_tokens(kernel, device) for kernel in ("few", "many")]
    from_tokens += [plain_from_tokens(device), torch_from_tokens(device)]
    if not options.no_sglang:
        from_logits.append(sglang(device))
        from_tokens.append(sglang_from_tokens(device))
    rows = run("moe_router", cases(), from_logits, options)
    return rows + run("moe_router_tokens", token_cases(), from_tokens, options)


if __name__ == "__main__":
    main()
