"""The two branches of a shortcut-connected layer: beside each other while a CUDA graph is captured,
one after the other otherwise.

The expert mixture needs only the first attention's output, and the layer needs the mixture only at
its end (paper section 3, ScMoE). Owns the streams' order and priorities, and what must stay alive
across them; sums over ranks stay with the caller, in one order on all ranks.
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

Urgent = TypeVar("Urgent")
Wide = TypeVar("Wide")
Chain = TypeVar("Chain")
# CUDA's numbering: 0 is the lowest, and what other streams have.
PRIORITIES = {"longcat_urgent": -2, "longcat_chain": -1, "longcat_wide": 0}


def beside(
    x: torch.Tensor,
    urgent: Callable[[], Urgent],
    wide: Callable[[Urgent], Wide],
    chain: Callable[[], Chain],
) -> tuple[Wide, Chain]:
    """The results of `wide`, which needs that of `urgent`, and of `chain`. All may read x, and none
    writes to it.

    `urgent` is a few blocks (the router), `wide` fills the GPU (expert GEMMs), `chain` is a row of
    kernels that wait for each other (the dense branch). Each has a stream, and the GPU gives room
    to blocks in this order: urgent, chain, wide. On equal terms the chain queued behind the
    experts: at batch 30 on an H200 it stood still for 630 us, until they were done, and its 146 us
    came after them.

    What the chain frees of the captured stream's memory is written over only after the streams have
    met again, because `wide` has made its own allocations by then. x is held until then.
    """
    if not runs_beside(x):
        return wide(urgent()), chain()
    own = torch.cuda.current_stream()
    first, second, third = prepare_streams()
    if get_parallel().tp_size > 1:
        return _on_equal_terms(third, lambda: wide(urgent()), chain)
    first.wait_stream(own)
    second.wait_stream(own)
    with torch.cuda.stream(first):
        needed = urgent()
    own.wait_stream(first)
    one = wide(needed)
    with torch.cuda.stream(second):
        other = chain()
    own.wait_stream(second)
    return one, other


def _on_equal_terms(
    stream: torch.cuda.Stream, wide: Callable[[], Wide], chain: Callable[[], Chain]
) -> tuple[Wide, Chain]:
    """With sums over ranks in the chain: all-reduces on another stream than the captured one have
    not run on GPUs yet, this has. To be replaced when they have."""
    own = torch.cuda.current_stream()
    stream.wait_stream(own)
    with torch.cuda.stream(stream):
        one = wide()
    other = chain()
    own.wait_stream(stream)
    return one, other


def prepare_streams() -> list[Any]:
    """The other streams; they have to exist before a graph is captured."""
    streams = []
    for name, priority in PRIORITIES.items():
        stream = get_stream(name)  # of SGLang's making, and of its priority
        if isinstance(stream, torch.cuda.Stream) and stream.priority != priority:
            stream = set_stream(name, torch.cuda.Stream(priority=priority))
        streams.append(stream)
    return streams


def runs_beside(x: torch.Tensor) -> bool:
    """In captured steps only: an eager step is bound by the host, and a breakable graph would end
    between the fork and the join."""
    captured = get_is_capture_mode() and not is_in_breakable_cuda_graph()
    return x.is_cuda and captured and x.shape[0] <= env.two_streams()
