"""When the branches of a layer run beside each other, and which of them the GPU prefers.

What they compute is checked in the engines of tests/model/*_gpu.py, whose steps are captured.
"""

from types import SimpleNamespace

import pytest
import torch

from sglang_longcat.models import branch


@pytest.fixture
def capturing(monkeypatch):
    monkeypatch.setattr(branch, "get_is_capture_mode", lambda: True)


def step(tokens, is_cuda=True):
    return SimpleNamespace(is_cuda=is_cuda, shape=(tokens, 8))


def test_small_captured_steps_on_a_gpu_only(capturing, monkeypatch):
    """Red if a prefill, an eager step or a breakable graph forks: the last would end in between."""
    monkeypatch.setenv("LONGCAT_TWO_STREAMS", "8")
    assert branch.runs_beside(step(8))
    assert not branch.runs_beside(step(9))
    assert not branch.runs_beside(step(1, is_cuda=False))
    monkeypatch.setattr(branch, "is_in_breakable_cuda_graph", lambda: True)
    assert not branch.runs_beside(step(1))
    monkeypatch.undo()
    assert not branch.runs_beside(step(1))


def test_elsewhere_one_follows_the_other():
    done = []
    results = branch.beside(
        torch.ones(3), lambda: done.append("wide"), lambda: done.append("chain")
    )
    assert results == (None, None)
    assert done == ["wide", "chain"]


@pytest.mark.gpu
def test_the_chain_goes_first_where_both_want_the_gpu(capturing, monkeypatch):
    """Red if the chain loses its priority in a captured graph: then it queues behind the wide
    kernels, each of which has more blocks than the GPU holds, and ends after them."""
    monkeypatch.setattr(branch, "prepare_streams", lambda: torch.cuda.Stream(priority=-1))
    large, small = torch.ones(1 << 28, device="cuda"), torch.ones(1 << 10, device="cuda")
    ends = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(3)]

    def repeat(x, times, end):
        for _ in range(times):
            x.mul_(1.0)
        end.record()

    def step():
        ends[0].record()
        small_step = small.view(1, -1)
        branch.beside(
            small_step, lambda: repeat(large, 8, ends[1]), lambda: repeat(small, 32, ends[2])
        )

    graph = torch.cuda.CUDAGraph()
    step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    wide, chain = (ends[0].elapsed_time(end) for end in ends[1:])
    assert chain < wide / 2
