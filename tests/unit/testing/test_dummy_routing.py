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


def packed_model() -> nn.Module:
    """A 4-bit layer and 4-bit experts, as SGLang's dummy loader leaves them."""
    root = nn.Module()
    root.proj, root.experts = nn.Module(), nn.Module()
    words = {"proj": ["weight_packed"], "experts": ["w13_weight_packed", "w2_weight_packed"]}
    for module, names in words.items():
        for name in [*names, "weight_g_idx"]:
            tensor = torch.zeros(64, 128, dtype=torch.int32)
            root.get_submodule(module).register_parameter(name, nn.Parameter(tensor, False))
    root.proj.weight_scale = nn.Parameter(torch.full((64, 8), 1e-3), requires_grad=False)
    return root


def test_all_values_of_4_bit_weights_appear_alike() -> None:
    """Red if a bit of a word stays as the memory was found, its sign too, in linear layers or in
    experts, or if scales or the order of the inputs are touched."""
    given = packed_model()
    spread_routing(None, given)
    for name, parameter in given.named_parameters():
        if name.endswith("weight_packed"):
            words = parameter.view(torch.uint8)
            counts = torch.cat([words & 15, words >> 4]).flatten().bincount(minlength=16)
            assert counts.min() > 0.9 * counts.float().mean()
            assert counts.numel() == 16
        elif name.endswith("g_idx"):
            assert not parameter.any()
    assert (given.proj.weight_scale == 1e-3).all()
