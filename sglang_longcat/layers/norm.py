"""The RMSNorms between two stages and behind the last one.

Each combines up to three jobs: it adds the mixture that a layer deferred, it sums over ranks in one
kernel with the norm, or it quantises for FP8 layers. A kernel that sums over ranks makes no FP8
pair, so the GEMM that reads its result quantises by itself. A norm that feeds FP8 layers adds a
deferred mixture in a launch of its own. Owns the combination only.
"""

from __future__ import annotations

import torch

from sglang_longcat.layers.allreduce_norm import AllReduceNorm
from sglang_longcat.layers.deferred_sum import DeferredSumNorm
from sglang_longcat.layers.fp8_inputs import Fp8Norm


class StageNorm(DeferredSumNorm, AllReduceNorm, Fp8Norm):
    """y = norm(x + residual) as SGLang's RMSNorm; `feed` names the FP8 layers that read y."""

    def can_add_deferred(self, x: torch.Tensor) -> bool:
        return not self.feeds_fp8(x)


class FinalNorm(DeferredSumNorm, AllReduceNorm):
    """The same behind the last stage; the head reads its result."""
