"""Whether this server keeps its KV cache in FP8 rows: `--kv-cache-dtype fp8_e4m3` and our model."""

from __future__ import annotations

FP8_ROWS = "fp8_e4m3"


def has_fp8_rows() -> bool:
    """In a scheduler process. The draft's cache is the target's kind, so the flag is the target's
    for both (`refusals/kv_cache.py`)."""
    from sglang.srt.runtime_context import get_model

    from sglang_longcat.host.hf_config import is_serving_us

    return bool(get_model().kv_cache_dtype == FP8_ROWS and is_serving_us())
