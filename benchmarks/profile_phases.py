"""The phases of one speculative step, by kernel: verify, draft-extend, draft, and the idle gaps.

Owns: which phase a kernel belongs to, and the table. There are two ways to find the phase:
 - spans: if the profiler also traces the host (`profile_step.py --spans`), SGLang marks `draft` and
   `draft_extend` there. Kernels that are launched outside of both belong to `verify`. This is
   exact, but tracing makes the host slower: take idle times from a run without spans.
 - graphs: the kernels of one graph launch share a correlation id. The launch with the n-gram kernel
   is the verify forward. Of the graph launches before the next such launch, the last is `draft`,
   and the one before the last is `draft_extend`. Kernels outside of graphs are assigned by time: to
   `verify` up to the kernels that accept drafts, then to `draft_extend` until the graph of `draft`,
   then to `draft`.
`profile_step` reads the trace and picks the step.
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
    """Times in us. `idle`: the time without a running kernel, just before kernels of this phase."""

    kernels: int = 0
    graphs: int = 0  # launches of more than one kernel
    launches: int = 0  # outside of graphs
    busy: float = 0.0
    idle: float = 0.0

    @property
    def wall(self) -> float:
        return self.busy + self.idle


def mark(kernels: Sequence[Kernel], events: Iterable[dict[str, Any]]) -> str:
    """Set `phase` of every kernel, from spans if the trace has them. Returns "spans" or "graphs".

    kernels: in order of their start, with name, ts and correlation; events: of the whole trace.
    """
    events = list(events)
    spans = [
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] in PHASES
    ]
    if spans:
        _by_spans(kernels, sorted(spans), _launch_times(events))
        return "spans"
    _by_graphs(kernels)
    return "graphs"


def _launch_times(events: Iterable[dict[str, Any]]) -> dict[int, float]:
    calls = (event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver"))
    return {
        call["args"]["correlation"]: call["ts"] for call in calls if "correlation" in call["args"]
    }


def _by_spans(
    kernels: Sequence[Kernel], spans: Sequence[tuple[float, float, str]], launched: dict[int, float]
) -> None:
    for kernel in kernels:
        at: float = launched.get(kernel["correlation"], float(kernel["ts"]))
        names = [name for begin, end, name in spans if begin <= at < end]
        kernel["phase"] = names[-1] if names else "verify"


def _by_graphs(kernels: Sequence[Kernel]) -> None:
    sizes = Counter(kernel["correlation"] for kernel in kernels)
    first = {kernel["correlation"]: i for i, kernel in reversed(list(enumerate(kernels)))}
    targets = {kernel["correlation"] for kernel in kernels if TARGET.search(kernel["name"])}
    starts = sorted(first[target] for target in targets)
    edges = sorted({0, *starts, len(kernels)})
    for begin, end in itertools.pairwise(edges):
        _one_step(kernels[begin:end], sizes, targets)


def _one_step(step: Sequence[Kernel], sizes: Counter[int], targets: set[int]) -> None:
    graphs = list(
        dict.fromkeys(kernel["correlation"] for kernel in step if sizes[kernel["correlation"]] > 1)
    )
    others = [graph for graph in graphs if graph not in targets]
    draft, extend = (others[-1:], others[-2:-1])
    accepting = [
        i
        for i, kernel in enumerate(step)
        if sizes[kernel["correlation"]] == 1 and ACCEPT.search(kernel["name"])
    ]
    phase, last = "verify", max(accepting, default=-1)
    for i, kernel in enumerate(step):
        if kernel["correlation"] in draft:
            phase = "draft"
        elif kernel["correlation"] in extend or (phase == "verify" and 0 <= last < i):
            phase = "draft_extend"
        kernel["phase"] = "verify" if kernel["correlation"] in targets else phase


def summary(kernels: Sequence[Kernel], end: float) -> dict[str, Phase]:
    """The sums of each phase, and of "end": the gap before `end`, where the next step starts."""
    phases = {name: Phase() for name in (*PHASES, "end")}
    reached = float(kernels[0]["ts"])
    sizes = Counter(kernel["correlation"] for kernel in kernels)
    seen: set[int] = set()
    for kernel in kernels:
        phase = phases[kernel["phase"]]
        stop = kernel["ts"] + kernel["dur"]
        phase.kernels += 1
        if kernel["correlation"] not in seen:
            phase.graphs += sizes[kernel["correlation"]] > 1
            phase.launches += sizes[kernel["correlation"]] == 1
        phase.idle += max(0.0, kernel["ts"] - reached)
        phase.busy += max(0.0, stop - max(reached, kernel["ts"]))
        reached = max(reached, stop)
        seen.add(kernel["correlation"])
    phases["end"].idle = max(0.0, end - reached)
    return phases


def table(phases: dict[str, Phase]) -> str:
    """A Markdown table; the rows add up to the step."""
    whole = Phase(
        kernels=sum(phase.kernels for phase in phases.values()),
        graphs=sum(phase.graphs for phase in phases.values()),
        launches=sum(phase.launches for phase in phases.values()),
        busy=sum(phase.busy for phase in phases.values()),
        idle=sum(phase.idle for phase in phases.values()),
    )
    lines = [
        "| phase | kernels | graphs | launches outside | busy ms | idle before | wall | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, phase in {**phases, "step": whole}.items():
        times = " | ".join(f"{us / 1e3:.3f}" for us in (phase.busy, phase.idle, phase.wall))
        counts = f"{phase.kernels} | {phase.graphs} | {phase.launches}"
        lines.append(f"| {name} | {counts} | {times} | {phase.wall / whole.wall:.1%} |")
    return "\n".join(lines)
