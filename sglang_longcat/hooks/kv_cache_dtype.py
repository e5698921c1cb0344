"""Let SGLang's layers and backends see the values of an FP8 KV cache in the model's type.

Why: SGLang takes `fp8_e4m3` for a pool of FP8 values without scales. It would cast queries and keys
to FP8 (flashattention_backend.py, prepare_paged_mha_query; forward_mha.py, _concat_and_cast_mha_k),
and a CPU refuses such a pool for MLA. Our pool gives values of the model's type. The string stays
"fp8_e4m3", by which prefill and decode workers recognise that they have the same kind of cache.
Upstream: mem_cache/kv_cache_dtype.py, configure_kv_cache_dtype.
Remove when: SGLang knows a cache whose stored type differs from the type that backends read.
"""

from __future__ import annotations

from typing import Any

TARGET = "sglang.srt.mem_cache.kv_cache_dtype.configure_kv_cache_dtype"


def apply(result: tuple[str | None, Any], **kwargs: Any) -> tuple[str | None, Any] | None:
    """(string, dtype of values); None leaves SGLang's."""
    from sglang_longcat.host.kv_cache import has_fp8_rows

    return (result[0], kwargs["model_dtype"]) if has_fp8_rows() else None
