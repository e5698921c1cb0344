"""Times a step's layers in a CUDA graph, as the engine replays them. For tools/tune_layer.py.

A number is the median over replays of one graph with all layers. Owns streams and graphs; what is
launched is layer_step.py's.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from timing import replay_us

from layer_inputs import LAYERS, Weights, make_step
from layer_space import Choices, Size
from layer_step import Step, Streams
from longcat_kernels.moe_router import Routing

_QUICK, _CAREFUL = 8, 20  # replays


class Timer:
    """`measure(choices, careful)`: microseconds a layer. Raises what the launches raise."""

    def __init__(self, size: Size, weights: Sequence[Weights]) -> None:
        from sglang_longcat.models.branch import PRIORITIES

        # The router's, the dense branch's and the experts', in this order there too.
        urgent, chain, wide = (torch.cuda.Stream(priority=p) for p in PRIORITIES.values())
        streams: Streams = (urgent, chain)
        self.captured = wide
        self.step = Step(make_step(size), weights, streams)

    def measure(self, choices: Choices, careful: bool) -> float:
        self._eager(choices)  # loads the kernels
        graph = self._capture(choices)
        times = [replay_us(graph) for _ in range(1 + (_CAREFUL if careful else _QUICK))]
        return statistics.median(times[1:]) / LAYERS  # the first warms up

    def experts_read(self, choices: Choices) -> list[int]:
        """By layer; weights of so many are what a step has to read."""
        ids = [routing.expert_ids for routing in self._eager(choices)]
        return [int((one.unique() >= 0).sum()) for one in ids]

    def _eager(self, choices: Choices) -> list[Routing]:
        try:
            with torch.cuda.stream(self.captured):
                return self.step.run(choices)
        finally:
            torch.cuda.synchronize()

    def _capture(self, choices: Choices) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.captured):  # torch.cuda.graph would also empty the caches
            graph.capture_begin()
            try:
                self.step.run(choices)
            finally:
                graph.capture_end()
        return graph
