"""What the log of a server says: its model classes, its KV cache, its decode rates."""

from __future__ import annotations

import re
import statistics

CLASS = re.compile(r"dummy routing: \d+ routers of (\S+)")
TOKENS = re.compile(r"max_total_num_tokens=(\d+)")
DECODE = re.compile(r"Decode batch.*?#running-req: (\d+).*?gen throughput \(token/s\): ([\d.]+)")


def model_classes(text: str) -> list[str]:
    """As `module.Name`: the target's, then the draft's."""
    return CLASS.findall(text)


def kv_tokens(text: str) -> int | None:
    found = TOKENS.search(text)
    return int(found[1]) if found else None


def steady_rate(text: str) -> float | None:
    """Tokens/s of the scheduler in the middle of a run: the median over the middle half of its
    figures, of those with nearly as many requests as the fullest one. None without any figure."""
    figures = [(int(running), float(rate)) for running, rate in DECODE.findall(text)]
    fullest = max((running for running, _ in figures), default=0)
    rates = [rate for running, rate in figures if running >= 0.9 * fullest]
    quarter = len(rates) // 4
    middle = rates[quarter : len(rates) - quarter]
    return statistics.median(middle) if middle else None
