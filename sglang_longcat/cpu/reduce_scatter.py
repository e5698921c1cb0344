"""The reduce-scatter of attention DP with expert parallelism on the CPU (a hook).

Why: with one attention rank per expert rank, SGLang returns the experts' sums by a reduce-scatter
of uneven pieces, which it has for NCCL only: on gloo the first forward fails in PyNcclCommunicator.
Its variant for deterministic inference sums all rows and keeps its own, for which an all-reduce is
enough.
Upstream: srt/distributed/parallel_state.py:1253 (GroupCoordinator.reduce_scatterv).
Remove when: reduce_scatterv takes CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sglang.srt.distributed.parallel_state import GroupCoordinator

TARGET = "sglang.srt.distributed.parallel_state.GroupCoordinator.reduce_scatterv"


def register() -> str:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, _reduce_scatterv, HookType.AROUND)
    return "reduce-scatter: all-reduce"


def _reduce_scatterv(
    original: Callable[..., torch.Tensor],
    self: GroupCoordinator,
    input_: torch.Tensor,
    output: torch.Tensor | None = None,
    sizes: list[int] | None = None,
) -> torch.Tensor:
    if not input_.is_cpu:
        return original(self, input_, output, sizes)
    reduced: torch.Tensor = self._deterministic_reduce_scatterv(input_, output, sizes)
    return reduced
