"""A branch of a layer that runs beside the rest of it: on a second stream while a CUDA graph is
captured, at once and on the same stream otherwise.

The expert mixture of a shortcut-connected layer needs only the first attention's output, and the
layer needs the mixture only at its end (paper section 3, ScMoE). At batch 1 both are chains of
small kernels that leave most of the GPU idle. Owns the streams' order and what must stay alive
across them; sums over ranks stay with the caller, on the main stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph import (
    is_in_breakable_cuda_graph,
)
from sglang.srt.model_executor.runner_utils.capture_mode import get_is_capture_mode
from sglang.srt.runtime_context import get_stream

from sglang_longcat import env

Result = TypeVar("Result")


class Branch(Generic[Result]):
    """`function(x)`, begun on construction; `join()` is its result, once per branch.

    x is held until the branch is joined: freed earlier, the main stream could write over its
    memory while the second one still reads.
    """

    def __init__(self, function: Callable[[torch.Tensor], Result], x: torch.Tensor) -> None:
        self.x = x
        self.stream = prepare_branches() if runs_beside(x) else None
        if self.stream is None:
            self.result = function(x)
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.result = function(x)

    def join(self) -> Result:
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        return self.result


def prepare_branches() -> Any:
    """The second stream; it has to exist before a graph is captured."""
    return get_stream("longcat_branch")


def runs_beside(x: torch.Tensor) -> bool:
    """In captured steps only: an eager step is bound by the host, and a breakable graph would end
    between the fork and the join."""
    captured = get_is_capture_mode() and not is_in_breakable_cuda_graph()
    return x.is_cuda and captured and x.shape[0] <= env.two_streams()
