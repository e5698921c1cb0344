"""The RMSNorms between two stages and behind the last: they add an expert mixture that a layer left
to them, sum over ranks, or quantise for FP8 layers.

What comes out of a kernel that sums has no FP8 pair, and the GEMM that reads it quantises by
itself; a norm that feeds FP8 layers adds its mixture in a launch of its own. Owns the combination
only.
"""

from __future__ import annotations

from sglang_longcat.layers.allreduce_norm import SumNorm
from sglang_longcat.layers.deferred_sum import OwedNorm
from sglang_longcat.layers.fp8_inputs import Fp8Norm


class StageNorm(OwedNorm, SumNorm, Fp8Norm):
    """y = norm(x + residual) as SGLang's RMSNorm; `feed` names the FP8 layers that read y."""

    def adds_mixtures(self) -> bool:
        return not self.feeds_fp8


class FinalNorm(OwedNorm, SumNorm):
    """The same behind the last stage, whose reader is the head."""
