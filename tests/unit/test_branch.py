"""When a branch of a layer runs on the second stream, and that it holds its input until joined.

The streams themselves run in the engines of tests/model/*_gpu.py, whose decode steps are captured.
"""

import weakref
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


def test_elsewhere_it_runs_at_once():
    branched = branch.Branch(lambda x: x * 2, torch.ones(3))
    assert branched.join().tolist() == [2.0, 2.0, 2.0]


def test_the_input_lives_as_long_as_the_branch():
    """Red if x may be freed, and written over, while the second stream still reads it."""
    x = torch.ones(3)
    alive, branched = weakref.ref(x), branch.Branch(lambda x: x + 1, x)
    del x
    assert alive() is not None
    del branched
    assert alive() is None
