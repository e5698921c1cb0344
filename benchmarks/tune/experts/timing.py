"""Times variants of the expert GEMM on a GPU, and checks what they compute.

A number is the least over replays of a CUDA graph whose calls take different routings in turn. At
batch 1 every call reads other experts, as the layers of a step do, so weights come from memory and
not from L2. Owns the tensors on the GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from benchmarks.tune.experts.launch import (
    Batch,
    Routing,
    Rows,
    Shape,
    align,
    input_rows,
    launch,
    make_batch,
    make_layer,
    make_routing,
)
from benchmarks.tune.experts.search import Pair
from benchmarks.tune.experts.space import FP8_BLOCK, Variant

_ROUTINGS, _REPLAYS = 10, 3
_FEW_ROUTINGS = 3  # from this many tokens on every expert is read anyway
_MANY_TOKENS = 1024
_HOPELESS = 1.5  # times the best so far: one replay is enough


class Bench:
    """`measure(tokens, variant)`: microseconds a call, inf if it cannot be launched."""

    def __init__(self, shape: Shape, *, fp8: bool) -> None:
        self.shape, self.fp8 = shape, fp8
        self.layer = make_layer(shape, "cuda", fp8=fp8)
        self.stream = torch.cuda.Stream()
        self.best: dict[tuple[int, str], float] = {}

    def measure(self, tokens: int, variant: Variant) -> float:
        from triton.errors import TritonError

        try:
            us = self._time(tokens, variant)
        except (TritonError, RuntimeError) as error:
            print(f"  {tokens} {variant}: {str(error).splitlines()[0][:100]}")
            torch.cuda.synchronize()
            return math.inf
        key = tokens, variant.op
        self.best[key] = min(us, self.best.get(key, math.inf))
        return us

    def _time(self, tokens: int, variant: Variant) -> float:
        batch = _batch(self.shape, tokens, self.fp8)
        calls = [
            functools.partial(launch, variant, self.layer, batch, rows)
            for rows in _rows(self.shape, tokens, variant.tile.m)
        ]
        calls[0]()  # loads the kernel
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):  # torch.cuda.graph would also empty the caches
            graph.capture_begin()
            for call in calls:
                call()
            graph.capture_end()
        least = math.inf
        for _ in range(_REPLAYS + 1):  # the first warms up
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            least = min(least, begin.elapsed_time(end) * 1e3 / len(calls))
            if least > _HOPELESS * self.best.get((tokens, variant.op), math.inf):
                break
        return least

    def weight_bytes(self, tokens: int) -> int:
        """Bytes of the weights that a call of both GEMMs reads, on average over the routings."""
        routings = [routing.ids for routing in _routings(self.shape, tokens)]
        chosen = sum(int((ids.unique() >= 0).sum()) for ids in routings) / len(routings)
        expert = self.layer.up[0].nbytes + self.layer.down[0].nbytes
        return round(chosen * expert)

    def differs(self, tokens: int, pair: Pair, other: Pair) -> float:
        """Relative distance of two pairs' outputs, both GEMMs and the activation between them."""
        first, second = self._outputs(tokens, pair), self._outputs(tokens, other)
        return float((first - second).norm() / second.norm())

    def _outputs(self, tokens: int, pair: Pair) -> torch.Tensor:
        up, down = pair
        batch = _batch(self.shape, tokens, self.fp8)
        rows = reached(_rows(self.shape, tokens, up.tile.m))
        launch(up, self.layer, batch, rows)
        self._activate(batch, input_rows(self.shape, tokens, up))
        launch(down, self.layer, batch, rows)
        return batch.out[rows.routing.ids >= 0].float()

    def _activate(self, batch: Batch, count: int) -> None:
        gate, up = batch.gate_up[:count].chunk(2, dim=-1)
        act = torch.nn.functional.silu(gate.float()) * up.float()
        if batch.act_scale is None:
            batch.act[:count] = act
            return
        blocks = act.unflatten(-1, (-1, FP8_BLOCK))
        scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448
        batch.act_scale[:count] = scale[..., 0]
        batch.act[:count] = (blocks / scale).flatten(-2)


def reached(routings: Sequence[Rows]) -> Rows:
    """The first routing with rows for this GPU: of a quarter of the experts, one token in ten picks
    none."""
    return next(rows for rows in routings if bool((rows.routing.ids >= 0).any()))


@functools.cache
def _batch(shape: Shape, tokens: int, fp8: bool) -> Batch:
    return make_batch(shape, tokens, "cuda", fp8=fp8)


@functools.cache
def _rows(shape: Shape, tokens: int, rows: int) -> list[Rows]:
    return [align(shape, routing, rows) for routing in _routings(shape, tokens)]


@functools.cache
def _routings(shape: Shape, tokens: int) -> list[Routing]:
    count = _FEW_ROUTINGS if tokens >= _MANY_TOKENS else _ROUTINGS
    return [make_routing(shape, tokens, seed=seed, device="cuda") for seed in range(count)]
