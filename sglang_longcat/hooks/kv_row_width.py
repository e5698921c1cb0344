"""Tell SGLang how much memory a row of the KV cache takes, if it is an FP8 row.

Why: SGLang divides the memory for the KV cache by this width times the bytes of a value. A row of
656 bytes is as wide as 328 values in bf16.
Upstream: mem_cache/kv_cache_configurator.py, calculate_mla_kv_cache_dim, which knows such rows for
sparse attention only.
Remove when: SGLang asks the pool class how large a row is.
"""

from __future__ import annotations

from typing import Any

TARGET = "sglang.srt.mem_cache.kv_cache_configurator.calculate_mla_kv_cache_dim"


def apply(_result: int, *, model_config: Any, kv_cache_dtype: Any) -> int | None:
    """In values of `kv_cache_dtype`; None leaves SGLang's number."""
    from longcat_kernels.kv_rows import row_width
    from sglang_longcat.host.kv_cache import has_fp8_rows

    if not has_fp8_rows():
        return None
    width = row_width(model_config.kv_lora_rank, model_config.qk_rope_head_dim, fp8=True)
    return width // int(kv_cache_dtype.itemsize)  # words of 16 bytes: any type divides them
