"""Own and cumulative time of Python functions in one thread, from py-spy's stacks or torch's trace.

Owns: the reading of both, and the tables. `profile_host` records them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

EVERYWHERE = 0.995  # of the time: such functions only contain the loop, and are not shown
MAIN = "MainThread"  # of a py-spy stack; SGLang's scheduler loops there


@dataclass
class Frames:
    """Time by function, in any unit. The values of `own` add up to `total`."""

    own: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cumulative: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def total(self) -> float:
        return sum(self.own.values())


def from_stacks(lines: Iterable[str]) -> Frames:
    """From `py-spy record --format raw --threads`: "thread (7): MainThread;outer;inner COUNT".
    A function that calls itself counts once a stack."""
    frames = Frames()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *functions = stack.split(";")
        if MAIN in thread and functions:
            frames.own[functions[-1]] += int(count)
            for function in set(functions):
                frames.cumulative[function] += int(count)
    return frames


def from_trace(events: Iterable[dict[str, Any]]) -> Frames:
    """From torch's Chrome trace with stacks, of the thread with the most calls; times in us. A call
    that began before the trace has no event, so the outermost frames may be missing."""
    calls = [event for event in events if event.get("cat") in ("python_function", "cpu_op")]
    by_thread: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for call in calls:
        by_thread[call["tid"]].append(call)
    frames = Frames()
    open_calls: list[tuple[str, float]] = []  # name, end
    longest = max(by_thread.values(), key=len, default=[])
    for call in sorted(longest, key=lambda each: (each["ts"], -each["dur"])):
        while open_calls and open_calls[-1][1] <= call["ts"]:
            open_calls.pop()
        name, duration = call["name"], call["dur"]
        if open_calls:
            frames.own[open_calls[-1][0]] -= duration
        if name not in {outer for outer, _ in open_calls}:
            frames.cumulative[name] += duration
        frames.own[name] += duration
        open_calls.append((name, call["ts"] + duration))
    return frames


def table(frames: Frames, *, rows: int, step_ms: float) -> str:
    """The `rows` largest by own and by cumulative time; ms of a step that takes `step_ms`. Raises
    ValueError if nothing was recorded."""
    if not frames.own:
        raise ValueError("no call of the scheduler's main thread was recorded")
    lines = []
    for title, values in (("own", frames.own), ("cumulative", frames.cumulative)):
        lines += [f"| {title} ms a step | share | function |", "|---|---|---|"]
        shares = {name: value / frames.total for name, value in values.items()}
        shown = [item for item in shares.items() if title == "own" or item[1] < EVERYWHERE]
        for name, share in sorted(shown, key=lambda item: -item[1])[:rows]:
            lines.append(f"| {share * step_ms:.3f} | {share:.1%} | `{name}` |")
        lines.append("")
    return "\n".join(lines)
