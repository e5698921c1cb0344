"""How LONGCAT_DUMMY_ROUTING changes dummy weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sglang_longcat.testing.dummy_routing import spread_routing


def model() -> nn.Module:
    """A router, and an FP8 layer as SGLang's dummy loader leaves it."""
    root = nn.Module()
    root.router, root.proj = nn.Module(), nn.Module()
    root.router.classifier = nn.Linear(64, 8, bias=False)
    weight = torch.zeros(256, 512).to(torch.float8_e4m3fn)
    root.proj.weight = nn.Parameter(weight, requires_grad=False)
    root.proj.weight_scale_inv = nn.Parameter(torch.ones(2, 4), requires_grad=False)
    return root


def test_fp8_weights_are_random_and_finite(capsys: pytest.CaptureFixture[str]) -> None:
    """Red if FP8 weights stay zeros, hold NaN or infinity, or their scales are touched."""
    given = model()
    spread_routing(None, given)
    values = given.proj.weight.detach().float()
    assert values.abs().min() == 0.5
    assert values.abs().max() == 0.9375
    assert values.unique().numel() == 16
    assert abs(values.mean()) < 0.01
    assert (given.proj.weight_scale_inv == 1).all()
    assert given.router.classifier.weight.std().item() == pytest.approx(3 / 8, rel=0.2)
    assert "dummy routing: 1 routers of torch.nn" in capsys.readouterr().out
    again = model()
    spread_routing(None, again)
    assert torch.equal(again.proj.weight.view(torch.uint8), given.proj.weight.view(torch.uint8))
