"""The phases of a speculative step, on traces made here: a timeline of launches and kernels."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import profile_phases as phases


def kernel(ts: float, name: str, launch: int, dur: float = 8.0) -> dict[str, Any]:
    return {"name": name, "ts": ts, "dur": dur, "stream": 7, "correlation": launch}


def steps(*, extend_graph: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Two steps with graphs for verify and draft, 10 us apart, and what each kernel is. The host
    launches 1000 us ahead of the GPU."""
    step = [
        ("_ngram_kernel", "graph 1", "verify"),
        ("gemm", "graph 1", "verify"),
        ("argmax", "alone", "verify"),
        ("VerifyTreeGreedy", "alone", "verify"),
        ("_verify_commit_outputs_kernel", "alone", "verify"),
        ("gemm", "graph 2" if extend_graph else "alone", "draft_extend"),
        ("lm_head", "graph 2" if extend_graph else "alone", "draft_extend"),
        ("gemm", "graph 3", "draft"),
        ("lm_head", "graph 3", "draft"),
        ("build_tree", "alone", "draft"),
        ("_pack_verify_mask_kernel", "alone", "draft"),
    ]
    kernels, wanted = [], []
    for i, (name, launch, phase) in enumerate([*step, *step]):
        number = int(launch[-1]) + 10 * (i // len(step)) if launch != "alone" else 100 + i
        kernels.append(kernel(1000.0 + 10 * i, name, number))
        wanted.append(phase)
    return kernels, wanted


@pytest.mark.parametrize("extend_graph", [True, False])
def test_graph_launches_tell_the_phases(extend_graph: bool) -> None:
    """Red if a graph replay, or a kernel launched between two of them, goes to another phase."""
    kernels, wanted = steps(extend_graph=extend_graph)
    assert phases.mark(kernels, []) == "graphs"
    assert [kernel["phase"] for kernel in kernels] == wanted


def test_spans_of_the_host_win() -> None:
    """Red if a kernel is looked up by when it ran instead of when it was launched."""
    kernels, wanted = steps(extend_graph=False)
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M"}]
    for kernel, phase in zip(kernels, wanted, strict=True):
        at = kernel["ts"] - 1000
        launch = {"correlation": kernel["correlation"]}
        events.append({"cat": "cuda_runtime", "name": "launch", "ts": at, "dur": 1, "args": launch})
        if phase != "verify":
            span = {"cat": "user_annotation", "name": phase, "ts": at - 1, "dur": 5}
            events.append(span)
    assert phases.mark(kernels, events) == "spans"
    assert [kernel["phase"] for kernel in kernels] == wanted


def test_the_table_adds_up_to_the_step() -> None:
    """Two streams overlap in the draft; idle time goes to the phase that the GPU waited for."""
    kernels = [
        kernel(0, "_ngram_kernel", 1, dur=30) | {"phase": "verify"},
        kernel(35, "gemm", 2, dur=20) | {"phase": "draft"},
        kernel(40, "gemm", 2, dur=25) | {"phase": "draft"},
    ]
    summary = phases.summary(kernels, end=100.0)
    assert (summary["verify"].busy, summary["verify"].idle) == (30, 0)
    assert (summary["draft"].busy, summary["draft"].idle) == (30, 5)
    draft, verify = summary["draft"], summary["verify"]
    assert (draft.kernels, draft.graphs, draft.launches) == (2, 1, 0)
    assert (verify.kernels, verify.graphs, verify.launches) == (1, 0, 1)
    assert summary["end"].idle == 35
    assert sum(phase.wall for phase in summary.values()) == 100
    lines = phases.table(summary).splitlines()
    assert lines[-1] == "| step | 3 | 1 | 1 | 0.060 | 0.040 | 0.100 | 100.0% |"
