"""A sum over ranks, the residual add and the RMSNorm that follows, as one kernel (TP > 1).

    residual' = residual + sum_r x_r;    y = norm(residual')

The kernel is flashinfer's, behind SGLang's norm; an engine has it with
--flashinfer-allreduce-fusion-backend trtllm (other backends may create NVLink multicast objects;
this one maps the memory of the other GPUs of a machine). Not by default: it compiles for minutes at
the first start, and it only gains between some 30 and 256 rows on two GPUs, 64 on four, 1 us of a
sum. Between two stages SGLang's layer boundaries leave a sum to the norm that reads it. Owns what
they lack: the sums at both ends of the stack, and up to how many rows the kernel is taken.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.layer_boundary import (
    PLAIN_ADD,
    ReadoutFusion,
    SumGroup,
    UnreducedOutput,
)
from sglang.srt.layers.layer_boundary.residual import PendingUpdateRead
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.layer_boundary.residual.add_norm import (
    NormReadout,
    flashinfer_ar_fusion_applies,
)
from sglang.srt.layers.layer_boundary.residual.stream import ResidualStream
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.utils import post_experts_reduction_group
from sglang.srt.runtime_context import get_parallel

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

logger = logging.getLogger(__name__)

# Rows up to which the kernel is taken, by ranks: where the separate ones are not faster yet. Fused
# against separate, us, on H200: two 4.4 and 3.6 at 1 row, 5.3 and 6.1 at 30, 9.3 and 10.1 at 256,
# 33 and 27 at 1,024; four 5.7 and 3.9, 6.9 and 7.2, 8.7 and 9.5 at 64, 19 and 15 at 256
# (benchmarks/results/h200/allreduce.csv). Above, SGLang sums with flashinfer's plain kernel up to
# its own limit of 2,048, and with its own beyond.
FUSED_ROWS = {2: 256, 4: 64}


def most_rows() -> int:
    """FUSED_ROWS of an engine's ranks; numbers that were not measured take those of four."""
    return FUSED_ROWS.get(get_parallel().tp_size, FUSED_ROWS[4])


class SumNorm(RMSNorm):
    """SGLang's RMSNorm, which takes the kernel for at most `most_rows()`."""

    def forward_with_allreduce_fusion(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
        use_attn_tp_group: bool = True,
    ) -> Any:
        """x: [T, hidden], this rank's share -> (y, residual'), both new where the kernel ran."""
        if residual is not None and x.shape[0] > most_rows():
            attention = get_parallel().attn_tp_group
            group = attention if use_attn_tp_group else post_experts_reduction_group()
            return self(group.all_reduce(x), residual, post_residual_addition)
        _say_once()
        return super().forward_with_allreduce_fusion(
            x, residual, post_residual_addition, use_attn_tp_group
        )


@functools.cache
def _say_once() -> None:
    if get_parallel().tp_rank == 0:
        logger.info("Sums over ranks, residual adds and norms are one kernel (flashinfer)")


def fuses(x: torch.Tensor) -> bool:
    """Whether a sum of x's rows over the ranks is left to the norm that reads it. The same on
    every rank."""
    rows = x.shape[0]
    return bool(rows <= most_rows() and flashinfer_ar_fusion_applies(rows))


def leave_sum(partial: torch.Tensor, forward_batch: ForwardBatch) -> Any:
    """The stack's input with its sum over ranks left to the first norm, as stages hand theirs on:
    upon a residual, which here is zero. Once per forward, after the stack was started."""
    share = UnreducedOutput(partial, group=get_parallel().tp_group)
    output, forward_batch.residual_stream = ResidualStream.from_handoff(
        share, torch.zeros_like(partial), PLAIN_ADD
    )
    return output


def final_norm(hidden: Any, forward_batch: ForwardBatch, norm: SumNorm) -> torch.Tensor:
    """What the last stage handed on, summed where that was left, added and normed."""
    y, _ = residual_batch.read_output(hidden, forward_batch, _FINAL, norm)
    result: torch.Tensor = y
    return result


def _sum_and_norm(
    owed: UnreducedOutput, residual: torch.Tensor, forward_batch: ForwardBatch, norm: SumNorm
) -> Any:
    """None: SGLang sums and norms itself."""
    if not fuses(owed.partial):
        return None
    return norm.forward_with_allreduce_fusion(owed.partial, residual, use_attn_tp_group=False)


class _FinalRead(NormReadout, PendingUpdateRead):
    """SGLang's reading of a residual by a norm, for the norm behind the last stage."""

    completing_fusions = (
        ReadoutFusion(SumGroup.MOE_OUTPUT, run=_sum_and_norm, reads=True, carried=True),
    )

    def accepts_pending_update(self, update: Any) -> bool:
        return bool(update.is_plain_add)


_FINAL = _FinalRead()
