"""A sum over ranks, the residual add and the RMSNorm that follows, as one kernel (TP > 1).

    residual' = residual + sum_r x_r;    y = norm(residual')

The kernel is flashinfer's, behind SGLang's norm. A server uses it with
--flashinfer-allreduce-fusion-backend trtllm. That backend maps the memory of the machine's other
GPUs; other backends may create NVLink multicast objects. It is off by default: it compiles for
minutes at the first start, and it gains only between some 30 and 256 rows on two GPUs, or up to 64
rows on four, about 1 us a sum. Between two stages SGLang's layer boundaries already hand a sum to
the norm that reads it. Owns what they lack: the sums at both ends of the stack, and the number of
rows up to which the kernel is used.
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

# Rows up to which the kernel is used, by ranks: above, the separate kernels are faster. Fused
# against separate, us, on H200: two GPUs 4.4 and 3.6 at 1 row, 5.3 and 6.1 at 30, 9.3 and 10.1 at
# 256, 33 and 27 at 1,024; four GPUs 5.7 and 3.9, 6.9 and 7.2, 8.7 and 9.5 at 64, 19 and 15 at 256
# (benchmarks/results/h200/allreduce.csv). Above this limit SGLang sums with flashinfer's plain
# kernel up to 2,048 rows, its own limit, and with its own kernel beyond.
MAX_ROWS = {2: 256, 4: 64}


def max_rows() -> int:
    """MAX_ROWS of this server's ranks; numbers of ranks that were not measured take those of 4."""
    return MAX_ROWS.get(get_parallel().tp_size, MAX_ROWS[4])


class AllReduceNorm(RMSNorm):
    """SGLang's RMSNorm, which uses the kernel for at most `max_rows()`."""

    def forward_with_allreduce_fusion(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        post_residual_addition: torch.Tensor | None = None,
        use_attn_tp_group: bool = True,
    ) -> Any:
        """x: [T, hidden], this rank's share -> (y, residual'), both new where the kernel ran."""
        if residual is not None and x.shape[0] > max_rows():
            attention = get_parallel().attn_tp_group
            group = attention if use_attn_tp_group else post_experts_reduction_group()
            return self(group.all_reduce(x), residual, post_residual_addition)
        _log_once()
        return super().forward_with_allreduce_fusion(
            x, residual, post_residual_addition, use_attn_tp_group
        )


@functools.cache
def _log_once() -> None:
    if get_parallel().tp_rank == 0:
        logger.info("Sums over ranks, residual adds and norms are one kernel (flashinfer)")


def use_allreduce_norm(x: torch.Tensor) -> bool:
    """Whether the sum of x's rows over the ranks is handed to the norm that reads it. The answer is
    the same on every rank."""
    rows = x.shape[0]
    return bool(rows <= max_rows() and flashinfer_ar_fusion_applies(rows))


def defer_allreduce(partial: torch.Tensor, forward_batch: ForwardBatch) -> Any:
    """The stack's input, whose sum over ranks the first norm makes. It has the form in which stages
    hand their outputs on: a share and a residual, which here is zero. Call it once per forward,
    after the stack was started."""
    share = UnreducedOutput(partial, group=get_parallel().tp_group)
    output, forward_batch.residual_stream = ResidualStream.from_handoff(
        share, torch.zeros_like(partial), PLAIN_ADD
    )
    return output


def final_norm(hidden: Any, forward_batch: ForwardBatch, norm: AllReduceNorm) -> torch.Tensor:
    """What the last stage handed on: summed over ranks if that is still due, added, normed."""
    y, _ = residual_batch.read_output(hidden, forward_batch, _FINAL, norm)
    result: torch.Tensor = y
    return result


def _sum_and_norm(
    output: UnreducedOutput,
    residual: torch.Tensor,
    forward_batch: ForwardBatch,
    norm: AllReduceNorm,
) -> Any:
    """None: SGLang sums and norms itself."""
    if not use_allreduce_norm(output.partial):
        return None
    return norm.forward_with_allreduce_fusion(output.partial, residual, use_attn_tp_group=False)


class _FinalRead(NormReadout, PendingUpdateRead):
    """How SGLang lets a norm read the residual, for the norm behind the last stage."""

    completing_fusions = (
        ReadoutFusion(SumGroup.MOE_OUTPUT, run=_sum_and_norm, reads=True, carried=True),
    )

    def accepts_pending_update(self, update: Any) -> bool:
        return bool(update.is_plain_add)


_FINAL = _FinalRead()
