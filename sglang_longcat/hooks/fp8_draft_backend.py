"""Give the draft the backend that reads FP8 rows.

Why: SGLang's registry of attention backends has the target's. A draft's are built by a factory with
a table of its own.
Upstream: speculative/draft_utils.py, DraftBackendFactory._create_backend; the table's "fa3".
Remove when: the factory asks the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TARGET = "sglang.srt.speculative.draft_utils.DraftBackendFactory._create_backend"


def apply(
    original: Callable[..., Any],
    factory: Any,
    backend_name: str,
    backend_map: Mapping[str, Any],
    error_template: str,
    stamps_children: bool = False,
) -> Any:
    """stamps_children: the backends of the decode steps; otherwise the one that fills the draft's
    KV cache."""
    from sglang_longcat.host.kv_cache import has_fp8_rows

    if has_fp8_rows():
        backend_map = {**backend_map, "fa3": lambda: ("fa3", _make(factory, stamps_children))}
    return original(factory, backend_name, backend_map, error_template, stamps_children)


def _make(factory: Any, steps: bool) -> Any:
    from sglang_longcat.kv_cache.fa3 import Fp8RowBackend, Fp8RowDraftSteps

    runner = factory.draft_model_runner
    if steps:
        return Fp8RowDraftSteps(runner, factory.topk, factory.speculative_num_steps)
    return Fp8RowBackend(runner, skip_prefill=False)
