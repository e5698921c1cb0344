"""How long the n-gram rows of a step take where the tables lie, measured once at a server's start.

A gauge and a log line: the one number that says whether host tables suit this machine's PCIe link.
Owns the measurement; `metrics.py` owns the gauge.
"""

from __future__ import annotations

import logging
import time

import torch

from longcat_kernels.ngram_rows import extend_rows
from sglang_longcat import metrics
from sglang_longcat.ngram.cache import RING, NgramCache
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
    where = text, torch.arange(tokens, device=device), slot, slot, slot + tokens

    def seconds() -> float:
        begin = time.perf_counter()
        for _ in range(_CALLS):
            extend_rows(*where, ring, cache.table, tables.table)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / _CALLS

    seconds()  # the first one loads kernels, and rows into caches
    return seconds()


def publish(cache: NgramCache, tables: NgramTables, *, vocab: int) -> None:
    """Measure, log, and set `longcat:ngram_gather_seconds`."""
    found = {count: gather_seconds(cache, tables, count, vocab=vocab) for count in TOKENS}
    for count, seconds in found.items():
        metrics.publish_gather(tokens=count, place=tables.where, seconds=seconds)
    each = ", ".join(f"{1e6 * seconds:.0f} us for {count}" for count, seconds in found.items())
    logger.info("N-gram rows from the %s: %s tokens", tables.where, each)
