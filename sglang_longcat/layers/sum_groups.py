"""Which ranks sum a stage's output: who adds a term that all of them hold, and which sums are one.

SGLang's layer boundaries name a group of ranks (`SumGroup`) for each stage's output. Owns these two
questions about the groups; the sums are SGLang's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.layers.dp_attention import is_dp_attention_enabled
from sglang.srt.layers.layer_boundary.layout import SumGroup
from sglang.srt.runtime_context import get_parallel

if TYPE_CHECKING:
    from sglang.srt.layers.layer_boundary import StageBoundary
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def is_adding_rank(boundary: StageBoundary, forward_batch: ForwardBatch) -> bool:
    """True on one rank of the group that sums this stage's output, or on every rank where nothing
    is summed. That rank adds the identity part, which all ranks hold."""
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


def share_one_sum(
    mixture: StageBoundary, dense: StageBoundary, forward_batch: ForwardBatch
) -> bool:
    """True where the two stages that end a layer have the same rows and the same ranks to sum over.
    Their outputs can then be added first, which saves one all-reduce a layer. Attention DP moves
    the rows of one stage and not of the other."""
    parallel = get_parallel()
    if is_dp_attention_enabled() or parallel.moe_ep_size * parallel.moe_tp_size != parallel.tp_size:
        return False
    groups = [stage.plan.path_for(forward_batch).output.group for stage in (mixture, dense)]
    rows = [stage.plan.branch_rows(forward_batch)[2] for stage in (mixture, dense)]
    return rows[0] == rows[1] and groups in (
        [SumGroup.MOE_OUTPUT, SumGroup.TP],
        [SumGroup.TP, SumGroup.TP],
    )
