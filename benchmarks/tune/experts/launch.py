"""SGLang's expert GEMMs on this model's shapes, called as its fused experts call them.

    layer = make_layer(SHAPES["tp1"], "cuda", fp8=False)
    batch = make_batch(SHAPES["tp1"], tokens=8, device="cuda", fp8=False)
    routing = make_routing(SHAPES["tp1"], tokens=8, seed=0, device="cuda")
    launch(variant, layer, batch, align(SHAPES["tp1"], routing, rows=variant.tile.m))

On "cpu" the tensors are left uninitialised: enough for `compile_only`. Owns inputs and calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.tune.experts.space import FP8_BLOCK, Variant
from longcat_kernels.lite import EXPERT_FFN, HIDDEN, ROUTED, ROUTED_SLOTS, TOP_K

_SKEW = 0.5  # standard deviation of the experts' log popularity
_MOST_ROWS = 128  # of a tile, for buffers in the order of experts


@dataclass(frozen=True)
class Shape:
    """One GPU's part of a layer: how many of the experts it holds, and how many columns of each."""

    name: str
    experts: int
    width: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tp1", ROUTED, EXPERT_FFN),
        Shape("tp2", ROUTED, EXPERT_FFN // 2),
        *(Shape(f"ep{ranks}", ROUTED // ranks, EXPERT_FFN) for ranks in (2, 4, 8)),
    )
}


@dataclass(frozen=True)
class Layer:
    """up [E, 2 width, hidden], down [E, hidden, width]; scales per 128 x 128 block for fp8."""

    shape: Shape
    up: torch.Tensor
    down: torch.Tensor
    up_scale: torch.Tensor | None
    down_scale: torch.Tensor | None


@dataclass(frozen=True)
class Batch:
    """Inputs and outputs of both GEMMs. Rows in the order of experts are padded: for these there
    are more rows than tokens * top_k."""

    tokens: int
    x: torch.Tensor
    x_scale: torch.Tensor | None
    gate_up: torch.Tensor
    act: torch.Tensor
    act_scale: torch.Tensor | None
    out: torch.Tensor


@dataclass(frozen=True)
class Routing:
    """ids [T, 12] int32, -1 for slots without an expert of this GPU; weights [T, 12] fp32."""

    ids: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Rows:
    """A routing whose rows are sorted by expert and padded to tiles."""

    routing: Routing
    sorted_ids: torch.Tensor
    expert_ids: torch.Tensor
    padded: torch.Tensor


def make_layer(shape: Shape, device: str, *, fp8: bool) -> Layer:
    def matrix(*size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        kind = torch.float8_e4m3fn if fp8 else torch.bfloat16
        weight = torch.empty(size, dtype=kind, device=device)
        for expert in weight if device != "cpu" else ():
            expert.copy_(torch.randn(size[1:], device=device, dtype=torch.bfloat16) * 0.02)
        blocks = (size[0], size[1] // FP8_BLOCK, size[2] // FP8_BLOCK)
        return weight, torch.ones(blocks, device=device) if fp8 else None

    up, up_scale = matrix(shape.experts, 2 * shape.width, HIDDEN)
    down, down_scale = matrix(shape.experts, HIDDEN, shape.width)
    return Layer(shape, up, down, up_scale, down_scale)


def make_batch(shape: Shape, tokens: int, device: str, *, fp8: bool) -> Batch:
    def rows(count: int, width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        kind = torch.float8_e4m3fn if fp8 else torch.bfloat16
        value = torch.empty((count, width), dtype=kind, device=device)
        if device != "cpu":
            value.copy_(torch.randn((count, width), dtype=torch.bfloat16, device=device))
        scale = torch.ones((count, width // FP8_BLOCK), device=device) if fp8 else None
        return value, scale

    count = sorted_rows(shape, tokens, _MOST_ROWS)
    x, x_scale = rows(tokens, HIDDEN)
    act, act_scale = rows(count, shape.width)
    plain: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    gate_up = torch.empty((count, 2 * shape.width), **plain)
    out = torch.empty((tokens, TOP_K, HIDDEN), **plain)
    return Batch(tokens, x, x_scale, gate_up, act, act_scale, out)


def sorted_rows(shape: Shape, tokens: int, rows: int) -> int:
    """Rows that SGLang allocates where the second GEMM reads its input in the order of experts."""
    slots = tokens * TOP_K
    return slots + min(slots, shape.experts + 1) * (rows - 1)


def input_rows(shape: Shape, tokens: int, variant: Variant) -> int:
    """Rows that the second GEMM reads, which are those that the first one writes."""
    by_expert = variant.by_expert if variant.op == "up" else variant.tma
    return sorted_rows(shape, tokens, variant.tile.m) if by_expert else tokens * TOP_K


def make_routing(shape: Shape, tokens: int, *, seed: int, device: str = "cpu") -> Routing:
    """Eight distinct experts a token, some liked better than others, and four identity slots."""
    random = torch.Generator().manual_seed(seed)
    liking = torch.randn(ROUTED, generator=random) * _SKEW
    noise = -torch.rand((tokens, ROUTED), generator=random).log().neg().log()
    ids = torch.full((tokens, TOP_K), -1, dtype=torch.int32)
    ids[:, :ROUTED_SLOTS] = (liking + noise).topk(ROUTED_SLOTS).indices.int()
    weights = torch.rand((tokens, TOP_K), generator=random)
    return Routing(ids.masked_fill(ids >= shape.experts, -1).to(device), weights.to(device))


def align(shape: Shape, routing: Routing, rows: int) -> Rows:
    """rows: of a tile."""
    if routing.ids.is_cuda:
        from sglang.srt.layers.moe.moe_runner.triton_utils import moe_align_block_size

        return Rows(routing, *moe_align_block_size(routing.ids, rows, shape.experts))
    slots, experts = routing.ids.numel(), shape.experts + 1
    count = slots * rows if slots < experts else slots + experts * (rows - 1)
    count = (count + 3) // 4 * 4  # as moe_align_block_size allocates them
    sizes = (count, -(-count // rows), 1)
    return Rows(routing, *(torch.empty(size, dtype=torch.int32) for size in sizes))


def launch(variant: Variant, layer: Layer, batch: Batch, rows: Rows) -> None:
    """As in SGLang's `_fused_moe_kernel_sequence`, whose names the arguments have."""
    import triton.language as tl
    from sglang.kernels.ops.moe.fused_moe_triton_kernels import invoke_fused_moe_kernel

    up = variant.op == "up"
    count = input_rows(layer.shape, batch.tokens, variant)
    invoke_fused_moe_kernel(
        batch.x if up else batch.act[:count],
        layer.up if up else layer.down,
        None,
        batch.gate_up[:count] if up else batch.out,
        batch.x_scale if up else _head(batch.act_scale, count),
        layer.up_scale if up else layer.down_scale,
        None,
        rows.routing.weights,
        rows.routing.ids,
        rows.sorted_ids,
        rows.expert_ids,
        rows.padded,
        not up,
        TOP_K if up else 1,
        variant.tile.config(),
        compute_type=tl.bfloat16,
        use_fp8_w8a8=layer.up_scale is not None,
        use_int8_w8a8=False,
        use_int8_w8a16=False,
        use_int4_w4a16=False,
        per_channel_quant=False,
        block_shape=None if layer.up_scale is None else [FP8_BLOCK, FP8_BLOCK],
        c_sorted=variant.by_expert,
        a_use_tma=variant.tma and not up,
        b_use_tma=variant.tma,
        filter_expert=True,
        router_topk=1 if up else TOP_K,
    )


def _head(tensor: torch.Tensor | None, count: int) -> torch.Tensor | None:
    return None if tensor is None else tensor[:count]
