"""What ranks add up: which of them adds a term that all hold, and which sums are one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.layers.dp_attention import is_dp_attention_enabled
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


def sums_together(
    mixture: StageBoundary, dense: StageBoundary, forward_batch: ForwardBatch
) -> bool:
    """True where the outputs of two stages that end a layer lie on the same rows and are summed
    over the same ranks, so that they can be added first: one all-reduce less a layer. Attention DP
    moves the rows of the one and not of the other."""
    parallel = get_parallel()
    if is_dp_attention_enabled() or parallel.moe_ep_size * parallel.moe_tp_size != parallel.tp_size:
        return False
    groups = [stage.plan.path_for(forward_batch).output.group for stage in (mixture, dense)]
    rows = [stage.plan.branch_rows(forward_batch)[2] for stage in (mixture, dense)]
    return rows[0] == rows[1] and groups in (
        [SumGroup.MOE_OUTPUT, SumGroup.TP],
        [SumGroup.TP, SumGroup.TP],
    )
