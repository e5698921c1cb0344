"""Our own numbers on SGLang's /metrics page.

Owns: names and values of the gauges. No hook: SGLang collects its page from the files that every
process of the server leaves in PROMETHEUS_MULTIPROC_DIR (set by it with --enable-metrics), and a
gauge of any name made in a scheduler process goes there. Acceptance of speculation, KV cache and
latencies are SGLang's: `docs/observability.md` has the names.
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
    """`longcat:info` 1 with `labels` that say what serves; a panel joins or shows them."""
    _set(_INFO, "The plugin is active, with what", labels, value=1)


def publish_bytes(*, part: str, place: str, size: int) -> None:
    """`longcat:ngram_bytes` of one rank: `part` is "tables" or "cache", `place` "device" or
    "host"."""
    labels = {"part": part, "place": place}
    _set(_BYTES, "Memory of the N-gram tables and cache of a rank", labels, value=size)


def publish_gather(*, tokens: int, place: str, seconds: float) -> None:
    """`longcat:ngram_gather_seconds`: how long the rows of so many tokens took at start."""
    labels = {"tokens": str(tokens), "place": place}
    _set(_GATHER, "Append, hash and gather of the N-gram rows, at start", labels, value=seconds)


def _set(name: str, text: str, labels: Mapping[str, str], *, value: float) -> None:
    if enabled():
        _gauge(name, text, tuple(labels)).labels(**labels).set(value)


@functools.cache
def _gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
    # Only now: prometheus_client decides by the variable above, when it is imported.
    from prometheus_client import Gauge

    return Gauge(name, text, labels, multiprocess_mode="mostrecent")
