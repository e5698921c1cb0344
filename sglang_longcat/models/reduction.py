"""Which rank adds a term that every rank holds, so that the sum of ranks contains it once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.layers.layer_boundary.layout import SumGroup
from sglang.srt.runtime_context import get_parallel

if TYPE_CHECKING:
    from sglang.srt.layers.layer_boundary import StageBoundary
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def adds_once(boundary: StageBoundary, forward_batch: ForwardBatch) -> bool:
    """True on one rank of the group that the boundary sums this stage's output over, or on every
    rank where it is not summed."""
    group, parallel = boundary.plan.path_for(forward_batch).output.group, get_parallel()
    if group is SumGroup.ATTN_TP:
        return parallel.attn_tp_rank == 0
    if group is SumGroup.MOE_OUTPUT:
        return parallel.moe_ep_rank == 0 and parallel.moe_tp_rank == 0
    if group is SumGroup.TP:
        return parallel.tp_rank == 0
    if group is None:
        return True
    raise NotImplementedError(f"expert output summed over {group}, which no configuration uses")
