"""When the branches of a layer run at the same time, and which of them the GPU prefers.

What they compute is checked in the engines of tests/model/*_gpu.py, whose steps are captured.
"""

from types import SimpleNamespace

import pytest
import torch

from sglang_longcat.layers import branches


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(branches, "get_is_capture_mode", lambda: True)


def step(tokens, is_cuda=True):
    return SimpleNamespace(is_cuda=is_cuda, shape=(tokens, 8))


def test_small_captured_steps_on_a_gpu_only(capturing, monkeypatch):
    """Red if a prefill, an eager step or a breakable graph forks: the last would end in between."""
    monkeypatch.setenv("LONGCAT_TWO_STREAMS", "8")
    assert branches.use_branch_streams(step(8))
    assert not branches.use_branch_streams(step(9))
    assert not branches.use_branch_streams(step(1, is_cuda=False))
    monkeypatch.setattr(branches, "is_in_breakable_cuda_graph", lambda: True)
    assert not branches.use_branch_streams(step(1))
    monkeypatch.undo()
    assert not branches.use_branch_streams(step(1))


def test_elsewhere_one_follows_the_other():
    done = []
    results = branches.run_branches(
        torch.ones(3),
        router=lambda: done.append("router") or 1,
        experts=lambda given: done.append("experts") or given + 1,
        dense=lambda: done.append("dense") or 3,
    )
    assert results == (2, 3)
    assert done == ["router", "experts", "dense"]


@pytest.mark.gpu
def test_the_dense_branch_goes_first_where_both_want_the_gpu(capturing, monkeypatch):
    """Red if the dense branch loses its priority in a captured graph: then it queues behind the
    experts' kernels, each of which has more blocks than the GPU holds, and ends after them."""
    streams = [torch.cuda.Stream(priority=value) for value in branches.PRIORITIES.values()]
    monkeypatch.setattr(branches, "prepare_streams", lambda: streams)
    monkeypatch.setattr(branches, "get_parallel", lambda: SimpleNamespace(tp_size=1))
    large, small = torch.ones(1 << 28, device="cuda"), torch.ones(1, 1 << 10, device="cuda")
    begin, routed, experts, dense = (
        torch.cuda.Event(enable_timing=True, external=True) for _ in range(4)
    )

    def repeat(x, times, end):
        for _ in range(times):
            x.mul_(1.0)
        end.record()

    def step():
        begin.record()
        branches.run_branches(
            small,
            router=lambda: repeat(small, 2, routed),
            experts=lambda _: repeat(large, 8, experts),
            dense=lambda: repeat(small, 32, dense),
        )

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    assert begin.elapsed_time(dense) < begin.elapsed_time(experts) / 2
