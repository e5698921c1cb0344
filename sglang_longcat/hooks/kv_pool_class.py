"""Build the KV cache as a pool of FP8 rows.

Why: SGLang asks its platform for a pool class (platforms/interface.py, get_kv_pool_cls). That is an
object of the device, which serves every model, and another platform than SGLang's own loses paths
that are CUDA's only.
Upstream: mem_cache/kv_cache_configurator.py, KVCacheConfigurator._resolve_kv_pool_class.
Remove when: SGLang lets a model or a plugin name the pool class.
"""

from __future__ import annotations

from typing import Any

TARGET = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._resolve_kv_pool_class"


def apply(_result: type, _configurator: Any, *, kind: str, default: type) -> type | None:
    """None leaves SGLang's class."""
    from sglang_longcat.host.kv_cache import has_fp8_rows

    if kind != "mla" or not has_fp8_rows():
        return None
    from sglang_longcat.kv_cache.pool import Fp8RowPool

    return Fp8RowPool
