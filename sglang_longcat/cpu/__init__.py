"""Serving on a plain CPU: what SGLang's CPU engine lacks when no compiled sgl_kernel loads.

Owns: torch attention for MLA models, torch experts that skip absent ids, block-FP8 weights, rope
without YaRN, the reduce-scatter of attention DP, speculative decoding on chains, the environment
the engine needs (`environment`).
Correct rather than fast: for tests, CI and debugging.
Leaves to others: the model itself, and every operator that the in-tree CPU path has in torch.
"""

from __future__ import annotations


def install() -> list[str]:
    """Register the CPU implementations; call once per process, and only if SGLang's is_cpu().

    Returns what was chosen, one phrase each, for the start-up log line.
    """
    from sglang_longcat.cpu import experts, fp8, mla_backend, reduce_scatter, rope, speculative

    parts = (mla_backend, experts, fp8, rope, reduce_scatter, speculative)
    return [part.register() for part in parts]
