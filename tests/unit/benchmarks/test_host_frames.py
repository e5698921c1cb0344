"""`benchmarks/host_frames.py`: times of Python functions, from stacks and traces made here."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import host_frames
from benchmarks.profile_host import forwards

STACKS = [
    "thread (7): MainThread;loop (a.py:1);step (a.py:9);sync (b.py:3) 6",
    "thread (7): MainThread;loop (a.py:1);step (a.py:9) 1",
    "thread (7): MainThread;loop (a.py:1);step (a.py:9);step (a.py:9);sync (b.py:3) 3",
    "thread (8): Thread-1 (watchdog);wait (c.py:1) 10",
]


def test_stacks_count_the_main_thread_and_a_recursion_once() -> None:
    """Red if a thread that only sleeps takes half of the time, or a recursion counts twice."""
    frames = host_frames.from_stacks(STACKS)
    assert frames.total == 10
    assert dict(frames.own) == {"sync (b.py:3)": 9, "step (a.py:9)": 1}
    assert frames.cumulative["step (a.py:9)"] == 10


def call(name: str, ts: float, dur: float, tid: int = 7) -> dict[str, Any]:
    return {"cat": "python_function", "name": name, "ts": ts, "dur": dur, "tid": tid}


def test_a_traces_own_times_add_up_to_its_calls() -> None:
    """Red if a callee's time stays in its caller, a sibling is taken for a callee, or other threads
    and the GPU's kernels count."""
    events = [
        call("step", 0, 100),
        call("forward", 10, 50),
        call("mm", 20, 30) | {"cat": "cpu_op"},
        call("sync", 60, 40),
        call("kernel", 0, 1000) | {"cat": "kernel"},
        call("idle", 0, 1000, tid=8),
        {"name": "process_name", "ph": "M"},
    ]
    frames = host_frames.from_trace(events)
    assert dict(frames.own) == {"step": 10, "forward": 20, "mm": 30, "sync": 40}
    assert frames.cumulative["forward"] == 50
    assert frames.total == 100


def test_the_table_is_in_ms_of_a_step() -> None:
    """Red if shares are of something else than the whole, or the frames that only contain the loop
    push out the interesting ones."""
    lines = host_frames.table(host_frames.from_stacks(STACKS), rows=1, step_ms=2.0).splitlines()
    assert "| 1.800 | 90.0% | `sync (b.py:3)` |" in lines
    assert not any("loop" in line for line in lines)
    with pytest.raises(ValueError, match="no call"):
        host_frames.table(host_frames.from_stacks([]), rows=1, step_ms=2.0)


def test_a_step_is_a_window_with_speculation() -> None:
    """Red if accepted drafts count as steps, or a prompt alone as none."""
    assert forwards({"completion_tokens": 64, "spec_verify_ct": 20}) == 20
    assert forwards({"completion_tokens": 1, "spec_verify_ct": 0}) == 1
    assert forwards({"completion_tokens": 64}) == 64
