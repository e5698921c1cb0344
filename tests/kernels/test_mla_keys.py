"""Joined keys: a copy, so bit for bit."""

from __future__ import annotations

import pytest
import torch

from longcat_kernels.mla_keys import join_keys, reference
from longcat_kernels.mla_keys import workloads as lite


@pytest.mark.parametrize("heads", [1, 4, 16, 24, 32])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_each_head_gets_its_part_and_the_shared_one(device: str, tokens: int, heads: int) -> None:
    """Red if a stride, a head beyond the last or the order of the parts is wrong."""
    k_nope, k_pe = lite.make_inputs(tokens, seed=heads, device=device, heads=heads)
    got = join_keys(k_nope, k_pe)
    assert got.is_contiguous()
    assert torch.equal(got, reference.join_keys(k_nope, k_pe))
    assert torch.equal(got[..., : lite.NOPE], k_nope)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", lite.TOKENS)
def test_the_models_sizes(tokens: int) -> None:
    k_nope, k_pe = lite.make_inputs(tokens, seed=1, device="cuda")
    assert torch.equal(join_keys(k_nope, k_pe), reference.join_keys(k_nope, k_pe))
