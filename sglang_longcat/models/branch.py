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
from sglang.srt.runtime_context import get_stream, set_stream

from sglang_longcat import env

Wide = TypeVar("Wide")
Chain = TypeVar("Chain")
NAME = "longcat_chain"


def beside(
    x: torch.Tensor, wide: Callable[[], Wide], chain: Callable[[], Chain]
) -> tuple[Wide, Chain]:
    """Both results; both may read x, and neither writes to it.

    `wide` fills the GPU (expert GEMMs), `chain` is a row of kernels that wait for each other (dense
    branch). So the chain runs on a second stream of higher priority: its few blocks go first
    wherever one of the experts' ends. On equal terms they queued behind all of them: at batch 8 on
    an H200 one reduction waited for 130 us, and 90 us of chain were left after the experts.

    What the chain frees of the first stream's memory is written over only after the streams have
    met again, because `wide` has made its own allocations by then.
    """
    stream = prepare_streams() if runs_beside(x) else None
    if stream is None:
        return wide(), chain()
    stream.wait_stream(torch.cuda.current_stream())
    first = wide()
    with torch.cuda.stream(stream):
        second = chain()
    torch.cuda.current_stream().wait_stream(stream)
    return first, second


def prepare_streams() -> Any:
    """The second stream; it has to exist before a graph is captured."""
    stream = get_stream(NAME)
    if isinstance(stream, torch.cuda.Stream) and stream.priority == 0:
        stream = set_stream(NAME, torch.cuda.Stream(priority=-1))
    return stream


def runs_beside(x: torch.Tensor) -> bool:
    """In captured steps only: an eager step is bound by the host, and a breakable graph would end
    between the fork and the join."""
    captured = get_is_capture_mode() and not is_in_breakable_cuda_graph()
    return x.is_cuda and captured and x.shape[0] <= env.two_streams()
