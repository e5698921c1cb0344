"""Our own numbers on SGLang's /metrics page.

Owns: names and values of our gauges. No hook is needed: SGLang collects its page from the files
that every process of the server writes to PROMETHEUS_MULTIPROC_DIR (which --enable-metrics sets),
and any gauge of a scheduler process is written there. SGLang itself reports acceptance length, KV
cache and latencies: `docs/observability.md` has the names.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Gauge

_BYTES = "longcat:ngram_bytes"
_GATHER = "longcat:ngram_gather_seconds"
_INFO = "longcat:info"


def enabled() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


def publish_info(labels: Mapping[str, str]) -> None:
    """Set `longcat:info` to 1, with `labels` that say what serves, for a panel to show or join."""
    _set(_INFO, "The plugin is active, with what", labels, value=1)


def publish_bytes(*, part: str, place: str, size: int) -> None:
    """Set `longcat:ngram_bytes` of this rank: `part` is "tables" or "cache", `place` is "device" or
    "host"."""
    labels = {"part": part, "place": place}
    _set(_BYTES, "Memory of the N-gram tables and cache of a rank", labels, value=size)


def publish_gather(*, tokens: int, place: str, seconds: float) -> None:
    """Set `longcat:ngram_gather_seconds`: the time for the rows of `tokens` tokens, at start-up."""
    labels = {"tokens": str(tokens), "place": place}
    _set(_GATHER, "Append, hash and gather of the N-gram rows, at start", labels, value=seconds)


def _set(name: str, text: str, labels: Mapping[str, str], *, value: float) -> None:
    if enabled():
        _gauge(name, text, tuple(labels)).labels(**labels).set(value)


@functools.cache
def _gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
    # Imported here, because prometheus_client reads the variable above when it is imported.
    from prometheus_client import Gauge

    return Gauge(name, text, labels, multiprocess_mode="mostrecent")
