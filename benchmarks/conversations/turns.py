"""A row of the report: what one turn of all conversations cost, and how much of it was reused."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.conversations.client import Reply
from benchmarks.serving.report import Columns

Row = dict[str, Any]
COLUMNS: Columns = {
    "turn": ("turn", "{}"),
    "prompt tokens": ("prompt_tokens", "{:,.0f}"),
    "cached": ("cached_share", "{:.1%}"),
    "from the host": ("host_share", "{:.1%}"),
    "reusable": ("reusable_share", "{:.1%}"),
    "TTFT p50 ms": ("ttft_ms", "{:,.0f}"),
    "TTFT p90 ms": ("ttft_p90_ms", "{:,.0f}"),
    "output tok/s": ("tok_s", "{:,.0f}"),
    "tok/s of a request": ("request_tok_s", "{:,.1f}"),
    "tokens a step": ("accept_length", "{:.2f}"),
}


def row(turn: int, replies: Sequence[Reply], *, seconds: float, reusable: int) -> Row:
    """reusable: tokens of the prompts that the turns before have had, answers included. output
    tok/s includes the time of the prefills; a request's rate begins at its first token."""
    prompts = sum(reply.prompt_tokens for reply in replies)
    ttft = [1e3 * reply.ttft for reply in replies]
    lengths = [reply.accept_length for reply in replies if reply.accept_length is not None]
    return {
        "turn": turn,
        "prompt_tokens": prompts / len(replies),
        "cached_share": sum(reply.cached_tokens for reply in replies) / prompts,
        "host_share": sum(reply.host_tokens for reply in replies) / prompts,
        "reusable_share": reusable / prompts,
        "ttft_ms": statistics.median(ttft),
        "ttft_p90_ms": percentile(ttft, 90),
        "tok_s": sum(len(reply.output) for reply in replies) / seconds,
        "request_tok_s": statistics.median(reply.rate for reply in replies),
        "accept_length": statistics.mean(lengths) if lengths else None,
        "seconds": seconds,
        "answered": len(replies),
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]
