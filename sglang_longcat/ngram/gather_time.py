"""How long a step's n-gram look-up takes at the tables' place, measured once when a server starts.

It goes into a gauge and a log line. This number says whether tables in host memory suit the
machine's PCIe link. Owns the measurement; `metrics.py` owns the gauge.
"""

from __future__ import annotations

import logging
import time

import torch

from longcat_kernels.lite import RING
from longcat_kernels.ngram import Prefill, extend_rows
from sglang_longcat import metrics
from sglang_longcat.ngram.cache import NgramCache
from sglang_longcat.ngram.tables import NgramTables

logger = logging.getLogger(__name__)
TOKENS = (1, 256)
_CALLS = 10


def gather_seconds(cache: NgramCache, tables: NgramTables, tokens: int, *, vocab: int) -> float:
    """Mean of ten calls in a row over one random text of `tokens` tokens, launches included; the
    ring is a scratch one. Waits for the GPU: not for use while serving."""
    device = cache.device
    random = torch.Generator().manual_seed(tokens)
    text = torch.randint(0, vocab, (tokens,), generator=random).to(device)
    slot = torch.zeros(1, dtype=torch.int64, device=device)
    ring = torch.zeros((1, RING), dtype=torch.int32, device=device)
    prefill = Prefill(
        tokens=text,
        positions=torch.arange(tokens, device=device),
        slots=slot,
        starts=slot,
        lengths=slot + tokens,
    )

    def seconds() -> float:
        begin = time.perf_counter()
        for _ in range(_CALLS):
            extend_rows(prefill, ring, cache.hash, tables.table)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / _CALLS

    seconds()  # the first one loads kernels, and rows into caches
    return seconds()


def publish(cache: NgramCache, tables: NgramTables, *, vocab: int) -> None:
    """Measure, log, and set `longcat:ngram_gather_seconds`."""
    times = {count: gather_seconds(cache, tables, count, vocab=vocab) for count in TOKENS}
    for count, seconds in times.items():
        metrics.publish_gather(tokens=count, place=tables.where, seconds=seconds)
    each = ", ".join(f"{1e6 * seconds:.0f} us for {count}" for count, seconds in times.items())
    logger.info("N-gram rows from the %s: %s tokens", tables.where, each)
