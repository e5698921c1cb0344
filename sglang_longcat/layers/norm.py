"""The RMSNorm between two stages: sums over ranks with it, and quantises for FP8 layers.

At most one of the two happens in a call: what comes out of the kernel that sums has no FP8 pair,
and the GEMM that reads it quantises by itself. Owns the combination only.
"""

from __future__ import annotations

from sglang_longcat.layers.fp8 import Fp8Norm
from sglang_longcat.layers.fused_sums import SumNorm


class StageNorm(SumNorm, Fp8Norm):
    """y = norm(x + residual) as SGLang's RMSNorm; `feed` names the FP8 layers that read y."""
