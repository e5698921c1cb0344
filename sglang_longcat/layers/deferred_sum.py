"""The sum that ends a layer, deferred to the norm that reads it: one kernel less a layer.

    residual' = residual + dense + experts + identity;    y = norm(residual')

The dense branch's tensor carries the layer's mixture as an attribute, through SGLang's layer
boundaries, to the next norm of ours. A tensor that lost the attribute would lose the experts, so
both ends check: `assert_deferred` behind the boundary that hands the tensor on, `assert_consumed`
behind the boundary that reads it. Owns which steps defer, and the attribute; the sum itself is in
`longcat_kernels.expert_sum`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.runtime_context import get_parallel

from longcat_kernels.expert_sum import finalize_norm
from sglang_longcat.layers.operations import is_enabled
from sglang_longcat.layers.step import is_decode_or_verify

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_longcat.layers.moe import Mixture

_DEFERRED = "longcat_deferred_mixture"


class DeferredSumNorm(RMSNorm):
    """SGLang's RMSNorm, which first adds the mixture that its input may carry."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, *rest: Any, **options: Any
    ) -> Any:
        mixture = _take(x)
        if mixture is None:
            return super().forward(x, residual, *rest, **options)
        plain = all(value is None for value in (*rest, *options.values()))
        if residual is None or not plain or not self.can_add_deferred(x):
            return super().forward(mixture.sum(x), residual, *rest, **options)
        normed = finalize_norm(
            mixture.experts,
            mixture.expert_ids,
            mixture.x,
            mixture.identity_weight,
            x,
            residual=residual,
            norm_weight=self.weight.data,
            eps=self.variance_epsilon,
        )
        return normed, residual

    def can_add_deferred(self, x: torch.Tensor) -> bool:
        """Whether one kernel may add the mixture and norm x. It returns y and nothing else."""
        return True


def use_deferred_sum(mixture: Mixture, forward_batch: ForwardBatch) -> bool:
    """Whether this step defers: it decodes or verifies, `finalize` would add the mixture up, and no
    sum over ranks stands between the layer and the norm."""
    return (
        is_decode_or_verify(forward_batch)
        and mixture.experts.dim() == 3
        and get_parallel().tp_size == 1
        and not torch.compiler.is_compiling()
        and is_enabled("finalize_norm")
    )


def defer(mixture: Mixture, dense: torch.Tensor) -> torch.Tensor:
    """`dense`, which carries the mixture to its reader."""
    setattr(dense, _DEFERRED, mixture)
    return dense


def assert_deferred(handed_on: Any) -> None:
    """RuntimeError if a layer boundary made another tensor of what `defer` returned."""
    if not hasattr(handed_on, _DEFERRED):
        raise RuntimeError(
            "A layer boundary of SGLang lost the expert outputs that its tensor carries; expected "
            "the tensor itself. Set LONGCAT_SGLANG_OPS=finalize_norm, and report this with your "
            "flags."
        )


def assert_consumed(read: Any) -> None:
    """RuntimeError if a stage read its input without one of our norms."""
    if hasattr(read, _DEFERRED):
        raise RuntimeError(
            "A stage read its input without the expert outputs that it carries; expected one of "
            "our norms to add them. Set LONGCAT_SGLANG_OPS=finalize_norm, and report this with "
            "your flags."
        )


def _take(x: torch.Tensor) -> Mixture | None:
    mixture: Mixture | None = getattr(x, _DEFERRED, None)
    if mixture is not None:
        delattr(x, _DEFERRED)
    return mixture
