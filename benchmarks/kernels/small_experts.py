"""The mixture of few tokens: ours, and what SGLang launches with the shipped tiles.

`grouped` is SGLang's path behind the router: the list of tokens by expert (`moe_align_block_size`),
two grouped GEMMs, SwiGLU, in block FP8 a quantisation before each, and our `finalize`. Every call
takes another routing and the weights of 256 experts are far larger than L2, so weights are cold as
in a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.expert_sum import finalize
from longcat_kernels.fp8_layout import GROUP
from longcat_kernels.small_experts import experts, reference, workloads
from longcat_kernels.small_experts.reference import Weights
from sglang_longcat.expert_configs import shipped

SHAPES = {
    f"{shape.name} {kind}": (shape, kind == "fp8")
    for shape in workloads.SHAPES
    for kind in ("bf16", "fp8")
}


def cases() -> list[Case]:
    return [
        Case(name, tokens, size, 2 * size)
        for name, (shape, fp8) in SHAPES.items()
        for tokens in workloads.BATCHES
        for size in [workloads.bytes_moved(shape, tokens, fp8=fp8)]
    ]


@functools.lru_cache(maxsize=1)
def weights_of(name: str, device: str) -> Weights:
    """One set for all copies: 7 GB in bf16. Random bits of FP8 are as good as quantised weights."""
    shape, fp8 = SHAPES[name]
    one = workloads.make_weights(shape._replace(experts=1), fp8=fp8, seed=0, device=device)
    return Weights(
        *(None if w is None else w.expand(shape.experts, -1, -1).contiguous() for w in one)  # type: ignore[arg-type]
    )


def _prepare(op: Callable[..., object], device: str) -> Callable[[Case, int], Call]:
    def prepare(case: Case, copy: int) -> Call:
        shape, _ = SHAPES[case.shape]
        weights = weights_of(case.shape, device)
        x, ids, factors, identity = workloads.make_inputs(
            shape, case.tokens, seed=copy, device=device
        )
        return lambda: op(x, ids, factors, weights, identity)

    return prepare


def tile(weights: Weights, tokens: int, down: bool) -> dict[str, Any]:
    """The shipped tiles of the nearest number of tokens, as SGLang chooses them; those of whole
    experts where a share has none."""
    count, _, columns = weights.down.shape
    quantised = "" if weights.down_scales is None else ",dtype=fp8_w8a8,block_shape=[128, 128]"
    rest = f",device_name=NVIDIA_H200{quantised}{'_down' if down else ''}.json"
    table = shipped(f"E={count},N={columns}{rest}") or shipped(f"E=256,N=1024{rest}")
    assert table is not None
    return dict(table[min(table, key=lambda m: abs(m - tokens))])


def grouped(
    x: torch.Tensor,
    ids: torch.Tensor,
    factors: torch.Tensor,
    weights: Weights,
    identity: torch.Tensor,
) -> torch.Tensor:
    """SGLang's path (`_fused_moe_kernel_sequence`, no_combine), then `finalize`."""
    from sgl_kernel import silu_and_mul
    from sglang.srt.layers.moe.moe_runner.triton_utils import moe_align_block_size

    up, down = (tile(weights, len(x), d) for d in (False, True))
    rows = moe_align_block_size(ids, up["BLOCK_SIZE_M"], len(weights.down))
    hidden = x.new_empty(ids.numel(), weights.gate_up.shape[1])
    _gemm(x, weights.gate_up, weights.gate_up_scales, hidden, factors, ids, rows, up, first=True)
    act = silu_and_mul(hidden)
    out = x.new_empty(*ids.shape, x.shape[1])
    _gemm(act, weights.down, weights.down_scales, out, factors, ids, rows, down, first=False)
    return finalize(out, ids, x, identity)


def _gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    out: torch.Tensor,
    factors: torch.Tensor,
    ids: torch.Tensor,
    rows: Sequence[torch.Tensor],
    config: dict[str, Any],
    *,
    first: bool,
) -> None:
    """`invoke_fused_moe_kernel` quantises x by itself in block FP8, in a launch of its own."""
    import triton.language as tl
    from sglang.kernels.ops.moe.fused_moe_triton_kernels import invoke_fused_moe_kernel

    top_k = ids.shape[1]
    config = {k: v for k, v in config.items() if k != "USE_TMA"}
    invoke_fused_moe_kernel(
        x,
        weight,
        None,
        out,
        None,
        scale,
        None,
        factors,
        ids,
        *rows,
        not first,
        top_k if first else 1,
        config,
        compute_type=tl.bfloat16,
        use_fp8_w8a8=scale is not None,
        use_int8_w8a8=False,
        use_int8_w8a16=False,
        use_int4_w4a16=False,
        per_channel_quant=False,
        block_shape=None if scale is None else [GROUP, GROUP],
        c_sorted=False,
        filter_expert=True,
    )


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    device = options.device
    implementations = [
        Implementation("ours", _prepare(experts, device)),
        Implementation("reference", _prepare(reference.experts, device), cuda_only=False),
    ]
    if not options.no_sglang:
        implementations.append(Implementation("grouped", _prepare(grouped, device)))
    return run("small_experts", cases(), implementations, options)


if __name__ == "__main__":
    main()
