"""The two branches of a shortcut-connected layer, on streams of their own in captured steps.

The expert mixture needs only the first attention's output, and the layer needs the mixture only at
its end (paper section 3, ScMoE). So the dense branch can run at the same time. In captured steps of
few tokens it does. On one GPU the router and the dense branch get streams of their own, with
priorities, and the experts stay on the captured stream. With tensor parallelism the experts get a
stream, without priorities. In all other steps one branch follows the other. Owns the streams, their
order and priorities, and which tensors must stay alive across them. Sums over ranks stay with the
caller, in one order on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph import (
    is_in_breakable_cuda_graph,
)
from sglang.srt.model_executor.runner_utils.capture_mode import get_is_capture_mode
from sglang.srt.runtime_context import get_parallel, get_stream, set_stream

from sglang_longcat import env

Routing = TypeVar("Routing")
Mixture = TypeVar("Mixture")
Dense = TypeVar("Dense")
# Stream names and priorities. In CUDA's numbering 0 is the lowest, and what other streams have, the
# captured one too. "longcat_experts" is used with tensor parallelism only.
PRIORITIES = {"longcat_router": -2, "longcat_dense": -1, "longcat_experts": 0}


def run_branches(
    x: torch.Tensor,
    router: Callable[[], Routing],
    experts: Callable[[Routing], Mixture],
    dense: Callable[[], Dense],
) -> tuple[Mixture, Dense]:
    """The results of `experts(router())` and of `dense()`. All three may read x; none writes to it.

    `router` is a few blocks, `experts` fills the GPU (grouped GEMMs), `dense` is a row of kernels
    that wait for each other. The GPU gives room to blocks in the order of their streams'
    priorities: router, dense, experts. Without priorities the dense branch queued behind the
    experts: at batch 30 on an H200 it stood still for 630 us, until they were done, and its 146 us
    came after them.

    x is held until both branches have ended. The dense branch runs last in Python, so whatever it
    frees on the captured stream is reused only after the streams have met again: `experts` has
    made its own allocations by then.
    """
    if not use_branch_streams(x):
        return experts(router()), dense()
    captured = torch.cuda.current_stream()
    router_stream, dense_stream, experts_stream = prepare_streams()
    if get_parallel().tp_size > 1:
        return _run_without_priorities(experts_stream, lambda: experts(router()), dense)
    router_stream.wait_stream(captured)
    dense_stream.wait_stream(captured)
    with torch.cuda.stream(router_stream):
        routing = router()
    captured.wait_stream(router_stream)
    mixture = experts(routing)
    with torch.cuda.stream(dense_stream):
        dense_result = dense()
    captured.wait_stream(dense_stream)
    return mixture, dense_result


def _run_without_priorities(
    stream: torch.cuda.Stream, experts: Callable[[], Mixture], dense: Callable[[], Dense]
) -> tuple[Mixture, Dense]:
    """With tensor parallelism the dense branch contains sums over ranks. It stays on the captured
    stream, where all-reduces have been measured; with priorities TPOT of two GPUs varied from run
    to run by more than they could gain (docs/measurements/rejected.md)."""
    captured = torch.cuda.current_stream()
    stream.wait_stream(captured)
    with torch.cuda.stream(stream):
        mixture = experts()
    dense_result = dense()
    captured.wait_stream(stream)
    return mixture, dense_result


def prepare_streams() -> list[Any]:
    """The streams of PRIORITIES, in that order. They have to exist before a graph is captured."""
    streams = []
    for name, priority in PRIORITIES.items():
        stream = get_stream(name)  # SGLang makes it, with the default priority
        if isinstance(stream, torch.cuda.Stream) and stream.priority != priority:
            stream = set_stream(name, torch.cuda.Stream(priority=priority))
        streams.append(stream)
    return streams


def use_branch_streams(x: torch.Tensor) -> bool:
    """True in captured steps of few tokens. An eager step is bound by the host, and a breakable
    graph would end between the fork and the join."""
    captured = get_is_capture_mode() and not is_in_breakable_cuda_graph()
    return x.is_cuda and captured and x.shape[0] <= env.two_streams()
