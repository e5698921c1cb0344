"""The tables of refused flags, one file a subject. `refused_flags.py` reads them.

Owns: which values are refused, why, and what to use instead. What each other flag of SGLang means
for this model is in docs/flags.md, and a test compares the two.
"""

from __future__ import annotations

from sglang_longcat.host.refusals import (
    attention,
    experts,
    features,
    kv_cache,
    parallel,
    speculation,
    weights,
)
from sglang_longcat.host.refusals.row import Refusal

ALWAYS: tuple[Refusal, ...] = (
    *weights.ROWS,
    *parallel.ROWS,
    *experts.ROWS,
    *attention.ROWS,
    *kv_cache.ROWS,
    *features.ROWS,
)
RESOLVED: tuple[Refusal, ...] = kv_cache.CHOSEN  # also checked against SGLang's own choices
WITH_SPECULATION: tuple[Refusal, ...] = speculation.ROWS  # checked with --speculative-algorithm
