"""Registers the backend of FP8 rows as SGLang's fa3, for runners whose pool has such rows."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.model_executor.model_runner import ModelRunner

NAME = "fa3"


@functools.cache
def register() -> None:
    """Once per process. Other models, and our model with bf16 rows, get SGLang's own backend."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    sglangs = ATTENTION_BACKENDS[NAME]

    def create(runner: ModelRunner) -> AttentionBackend:
        return _make(runner) if _reads_fp8_rows(runner) else sglangs(runner)

    ATTENTION_BACKENDS[NAME] = create


def _reads_fp8_rows(runner: ModelRunner) -> bool:
    """Before Hopper and after it SGLang's own function refuses fa3 for latent attention."""
    from sglang.srt.utils.common import get_device_capability

    from sglang_longcat.kv_cache.pool import Fp8RowPool

    return isinstance(runner.token_to_kv_pool, Fp8RowPool) and get_device_capability()[0] == 9


def _make(runner: ModelRunner) -> AttentionBackend:
    from sglang_longcat.kv_cache.fa3 import Fp8RowBackend  # imports the kernels of a GPU

    return Fp8RowBackend(runner)
