"""Serving on a plain CPU: what SGLang's CPU engine lacks if no compiled sgl_kernel loads.

- `environment`: the environment variables without which the CPU engine does not start.
- `mla_backend`: the attention backend `torch_native` for MLA models.
- `attention`: its arithmetic, and the plan of which KV rows each query sees.
- `mha_draft`: the same backend for a draft model that has no MLA.
- `experts`: routed experts that skip ids below zero (one hook).
- `fp8`: block-FP8 weights, widened at each use (one hook).
- `packed`: 4-bit weights, dequantised at each use.
- `rope`: MLA's rotary embedding without YaRN (one hook).
- `reduce_scatter`: the reduce-scatter of attention DP with expert parallelism (one hook).
- `speculative`: what SGLang's speculative workers need on the CPU (four hooks).
- `chain_ops`: the operators that `speculative` registers.

Owns: `install`, which registers all of them. They are correct rather than fast: for tests, CI and
debugging. Leaves to others: the model itself (models/), and every operator that the in-tree CPU
path has in torch. A file with hooks names the functions that it changes in TARGET or TARGETS.
"""

from __future__ import annotations


def install() -> list[str]:
    """Register the CPU implementations. Call it once per process, and only if SGLang's is_cpu().

    Returns one phrase per implementation for the start-up log line.
    """
    from sglang_longcat.cpu import (
        experts,
        fp8,
        mla_backend,
        packed,
        reduce_scatter,
        rope,
        speculative,
    )

    parts = (mla_backend, experts, fp8, packed, rope, reduce_scatter, speculative)
    return [part.register() for part in parts]
