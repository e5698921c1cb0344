"""A weight through AutoRound, our packing and back."""

from __future__ import annotations

import pytest
import torch
from auto_round.data_type.utils import get_quant_func
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_longcat.checkpoint import packing
from sglang_longcat.quantisation.packed import GROUP_SIZES, PackedFormat
from sglang_longcat.quantiser import rounding
from sglang_longcat.quantiser.selection import QuantiseError

values = st.lists(st.integers(0, 15), min_size=64, max_size=64)


def stored(size: int, symmetric: bool = True) -> PackedFormat:
    return PackedFormat("auto-round", "gptq", size, symmetric, zero_offset=1)


@given(values, st.sampled_from([0, 1]))
def test_packing_round_trip(drawn: list[int], dim: int) -> None:
    """Red if some value in some place of a word does not come back."""
    square = torch.tensor(drawn, dtype=torch.int32).view(8, 8)
    assert torch.equal(packing.unpack(packing.pack(square, dim), dim), square)
    if dim:
        assert torch.equal(packing.unpack_awq(packing.pack_awq(square)), square)


@settings(deadline=None, max_examples=30)  # the first call imports AutoRound
@given(
    size=st.sampled_from(GROUP_SIZES),
    symmetric=st.booleans(),
    outputs=st.integers(1, 4),
    groups=st.integers(1, 3),
    magnitude=st.sampled_from([1e-2, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_what_a_server_reads(
    size: int, symmetric: bool, outputs: int, groups: int, magnitude: float, seed: int
) -> None:
    """Red if the packed tensors mean other weights to our reader than AutoRound rounded to: its own
    values before it packs them."""
    draw = torch.Generator().manual_seed(seed)
    weight = magnitude * torch.randn(8 * outputs, groups * size, generator=draw)
    parts = rounding.quantise("layer", weight, stored(size, symmetric))
    read = packing.dequantise(packing.standard(parts, stored(size, symmetric)), size)
    rounded, _ = get_quant_func("int", 4, sym=symmetric, disable_opt_rtn=True, iters=0)
    expected, *_ = rounded(weight, bits=4, group_size=size)
    torch.testing.assert_close(read, expected, rtol=1e-3, atol=1e-3 * magnitude)
    error = rounding.relative_error("layer", weight, parts, stored(size, symmetric))
    assert error == pytest.approx(float((expected - weight).norm() / weight.norm()), rel=0.02)


def test_largest_error() -> None:
    """Red if rounding can exceed the bound above which `quantise` calls it a mistake."""
    weight = torch.full((8, 128), 1 / 16 - 1e-4)
    weight[:, 0] = 1
    parts = rounding.quantise("layer", weight, stored(128))
    error = rounding.relative_error("layer", weight, parts, stored(128))
    assert 0.55 < error < rounding.LARGEST_ERROR


def test_not_a_number() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    weight[3, 5] = torch.nan
    parts = rounding.quantise("layer", weight, stored(32))
    with pytest.raises(QuantiseError, match="layer has a relative error of nan"):
        rounding.relative_error("layer", weight, parts, stored(32))


def test_a_group_without_negative_weights() -> None:
    """Red if its zero point of 0 is stored as 1, which moves the whole group by a step."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[3, 32:] = weight[3, 32:].abs()
    with pytest.raises(QuantiseError, match="without a negative one"):
        rounding.quantise("layer", weight, stored(32, symmetric=False))
    rounding.quantise("layer", weight, stored(32))
