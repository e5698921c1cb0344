"""The sum that ends a layer, left to the norm that reads it: a kernel less a layer in decode steps.

    residual' = residual + dense + experts + identity;    y = norm(residual')

The dense branch's tensor carries its mixture, as an attribute, through SGLang's layer boundaries to
the next norm of ours. A tensor that lost it would lose the experts, so both ends check:
`still_owed` behind the boundary that hands on, `must_be_paid` behind the one that reads. Owns which
steps do so; the sum itself is `longcat_kernels.expert_finalize`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.runtime_context import get_exec, get_parallel

from longcat_kernels.expert_finalize import finalize_norm
from sglang_longcat import env

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_longcat.layers.moe import Mixture

_OWED = "longcat_owed_mixture"


class OwedNorm(RMSNorm):
    """SGLang's RMSNorm, which first adds the mixture that its input may carry."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, *rest: Any, **options: Any
    ) -> Any:
        mixture = _take(x)
        if mixture is None:
            return super().forward(x, residual, *rest, **options)
        plain = all(value is None for value in (*rest, *options.values()))
        if residual is None or not plain or not self.adds_mixtures():
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

    def adds_mixtures(self) -> bool:
        """Whether the kernel's y is all that this norm is for."""
        return True


def leaves_sum(mixture: Mixture, forward_batch: ForwardBatch) -> bool:
    """Whether this step may leave it: decode and verification, a mixture that `finalize` would add
    up anyway, and no ranks to sum over in between. Deterministic inference wants its own norms."""
    mode = forward_batch.forward_mode
    return (
        (mode.is_decode() or mode.is_target_verify())
        and mixture.experts.dim() == 3
        and get_parallel().tp_size == 1
        and not get_exec().deterministic.enable_deterministic_inference
        and not torch.compiler.is_compiling()
        and env.takes_ours("finalize_norm")
    )


def leave(mixture: Mixture, dense: torch.Tensor) -> torch.Tensor:
    """`dense`, which owes its reader the mixture."""
    setattr(dense, _OWED, mixture)
    return dense


def still_owed(handed_on: Any) -> None:
    """RuntimeError if a layer boundary made another tensor of what `leave` returned."""
    if not hasattr(handed_on, _OWED):
        raise RuntimeError(
            "A layer boundary of SGLang lost the expert outputs that its tensor carries; expected "
            "the tensor itself. Set LONGCAT_SGLANG_OPS=finalize_norm, and report this with your "
            "flags."
        )


def must_be_paid(read: Any) -> None:
    """RuntimeError if a stage read its input past our norms."""
    if hasattr(read, _OWED):
        raise RuntimeError(
            "A stage read its input without the expert outputs that it carries; expected one of "
            "our norms to add them. Set LONGCAT_SGLANG_OPS=finalize_norm, and report this with "
            "your flags."
        )


def _take(x: torch.Tensor) -> Mixture | None:
    mixture: Mixture | None = getattr(x, _OWED, None)
    if mixture is not None:
        delattr(x, _OWED)
    return mixture
