"""The phases of one speculative step, by kernel: verify, draft-extend, draft, and the gaps before.

Owns: which phase a kernel belongs to, and the table. Two ways to know:
 - spans: SGLang marks `draft` and `draft_extend` on the host where the profiler traces the host too
   (`profile_step.py --spans`); what is launched outside of both belongs to `verify`. Exact, but
   tracing the host makes it slower: read the idle times of a run without spans.
 - graphs: the kernels of one graph launch share a correlation id. The launch with the n-gram kernel
   is the verify forward; of the others before the next one, the last is `draft`, and one more
   before it is `draft_extend`. What is launched one by one follows in time: to `verify` up to the
   kernels that accept drafts, then to `draft_extend` until the draft's graph, then to `draft`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PHASES = ("verify", "draft_extend", "draft")
TARGET = re.compile(r"_ngram_kernel|n_gram|ngram", re.IGNORECASE)
# The last of them in SGLang 0.5.23 on CUDA is _verify_commit_outputs_kernel.
ACCEPT = re.compile(r"verify_?tree|tree_?spec|simulated|bonus|verify_commit", re.IGNORECASE)
Kernel = dict[str, Any]


@dataclass
class Phase:
    """Times in us; `idle`: no kernel ran, just before one of this phase."""

    kernels: int = 0
    launches: int = 0  # a graph counts once
    busy: float = 0.0
    idle: float = 0.0


def mark(kernels: Sequence[Kernel], events: Iterable[dict[str, Any]]) -> str:
    """Set `phase` of every kernel, from spans if the trace has them; says which way was taken.
    kernels: by start, with name, ts and correlation; events: of the whole trace."""
    events = list(events)
    spans = [
        (one["ts"], one["ts"] + one["dur"], one["name"])
        for one in events
        if one.get("cat") == "user_annotation" and one["name"] in PHASES
    ]
    if spans:
        _by_spans(kernels, sorted(spans), _launch_times(events))
        return "spans"
    _by_graphs(kernels)
    return "graphs"


def _launch_times(events: Iterable[dict[str, Any]]) -> dict[int, float]:
    calls = (one for one in events if one.get("cat") in ("cuda_runtime", "cuda_driver"))
    return {one["args"]["correlation"]: one["ts"] for one in calls if "correlation" in one["args"]}


def _by_spans(
    kernels: Sequence[Kernel], spans: Sequence[tuple[float, float, str]], launched: dict[int, float]
) -> None:
    for kernel in kernels:
        at: float = launched.get(kernel["correlation"], float(kernel["ts"]))
        names = [name for begin, end, name in spans if begin <= at < end]
        kernel["phase"] = names[-1] if names else "verify"


def _by_graphs(kernels: Sequence[Kernel]) -> None:
    sizes = Counter(kernel["correlation"] for kernel in kernels)
    first = {one["correlation"]: i for i, one in reversed(list(enumerate(kernels)))}
    targets = {one["correlation"] for one in kernels if TARGET.search(one["name"])}
    starts = sorted(first[target] for target in targets)
    edges = sorted({0, *starts, len(kernels)})
    for begin, end in itertools.pairwise(edges):
        _one_step(kernels[begin:end], sizes, targets)


def _one_step(step: Sequence[Kernel], sizes: Counter[int], targets: set[int]) -> None:
    graphs = list(
        dict.fromkeys(one["correlation"] for one in step if sizes[one["correlation"]] > 1)
    )
    others = [graph for graph in graphs if graph not in targets]
    draft, extend = (others[-1:], others[-2:-1])
    accepting = [
        i
        for i, one in enumerate(step)
        if sizes[one["correlation"]] == 1 and ACCEPT.search(one["name"])
    ]
    phase, last = "verify", max(accepting, default=-1)
    for i, kernel in enumerate(step):
        if kernel["correlation"] in draft:
            phase = "draft"
        elif kernel["correlation"] in extend or (phase == "verify" and 0 <= last < i):
            phase = "draft_extend"
        kernel["phase"] = "verify" if kernel["correlation"] in targets else phase


def summary(kernels: Sequence[Kernel], end: float) -> dict[str, Phase]:
    """By phase, plus "end": the gap until `end`, where the next step starts."""
    found = {name: Phase() for name in (*PHASES, "end")}
    reached = float(kernels[0]["ts"])
    seen: set[int] = set()
    for kernel in kernels:
        one = found[kernel["phase"]]
        stop = kernel["ts"] + kernel["dur"]
        one.kernels += 1
        one.launches += kernel["correlation"] not in seen
        one.idle += max(0.0, kernel["ts"] - reached)
        one.busy += max(0.0, stop - max(reached, kernel["ts"]))
        reached = max(reached, stop)
        seen.add(kernel["correlation"])
    found["end"].idle = max(0.0, end - reached)
    return found


def table(phases: dict[str, Phase]) -> str:
    """A Markdown table; the rows add up to the step."""
    total = sum(one.busy + one.idle for one in phases.values())
    lines = [
        "| phase | kernels | launches | busy ms | idle before ms | share |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in phases.items():
        share = (one.busy + one.idle) / total
        lines.append(
            f"| {name} | {one.kernels} | {one.launches} | {one.busy / 1e3:.3f} | "
            f"{one.idle / 1e3:.3f} | {share:.1%} |"
        )
    idle = sum(one.idle for one in phases.values())
    lines.append(f"| step | | | {(total - idle) / 1e3:.3f} | {idle / 1e3:.3f} | 100.0% |")
    return "\n".join(lines)
