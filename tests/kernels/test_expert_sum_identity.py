"""The identity part against the exact sum (in float64), and what it must leave alone.

Bound: half an ulp of the result for the one rounding to the tensor's dtype, plus one fp32 rounding
of the product and one of the sum. The product's is skipped where the compiler makes an FMA of the
two, so implementations may differ by an ulp (by more where out and weight * x cancel).
"""

from __future__ import annotations

import os

import pytest
import torch

from longcat_kernels import lite
from longcat_kernels.expert_sum import add_identity_, workloads

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP32_ROUNDING = 2.0**-24
# Triton's interpreter cuts fp32 off to bf16 where the GPU rounds to nearest.
CUTS_OFF = {torch.bfloat16} if "TRITON_INTERPRET" in os.environ else set()


def check(got: torch.Tensor, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """`out` as it was before the call."""
    product = weight.double()[:, None] * x.double()
    exact = out.double() + product
    info = torch.finfo(got.dtype)
    ulps = 1.0 if got.dtype in CUTS_OFF else 0.5
    last = ulps * info.eps * (exact.abs() + info.smallest_normal)
    bound = last + FP32_ROUNDING * (product.abs() + exact.abs())
    excess = (got.double() - exact).abs() - bound * 1.01
    assert excess.max() <= 0, f"{int((excess > 0).sum())} elements off, by up to {excess.max()}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 1000, 1024, 1025, 3072])
def test_widths_and_dtypes(device: str, width: int, dtype: torch.dtype) -> None:
    out, x, weight = workloads.make_identity_inputs(
        5, seed=width, device=device, dtype=dtype, width=width
    )
    before = out.clone()
    assert add_identity_(out, x, weight) is out
    check(out, before, x, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_inside_wider_tensors(device: str, dtype: torch.dtype) -> None:
    wide_out, wide_x, weight = workloads.make_identity_inputs(
        4, seed=1, device=device, dtype=dtype, width=1300
    )
    before = wide_out.clone()
    out, x = wide_out[:, 100:1201], wide_x[:, 7:1108]
    add_identity_(out, x, weight)
    check(out, before[:, 100:1201], x, weight)
    assert torch.equal(wide_out[:, :100], before[:, :100])
    assert torch.equal(wide_out[:, 1201:], before[:, 1201:])


def test_the_product_is_not_rounded_on_its_own(device: str) -> None:
    """2049 + 2**-12 rounds to 2050 (fp16 has an ulp of 2 here); 2048 + fp16(weight) to 2048."""
    out, x = torch.tensor([[[2048.0]], [[1.0]]], dtype=torch.float16, device=device)
    weight = torch.tensor([1 + 2.0**-12], device=device)
    assert add_identity_(out, x, weight).item() == 2050.0


def test_a_token_without_identity_experts_keeps_its_bits(device: str) -> None:
    out, x, weight = workloads.make_identity_inputs(3, seed=2, device=device)
    weight[1] = 0.0
    before = out.clone()
    add_identity_(out, x, weight)
    assert torch.equal(out[1], before[1])
    assert not torch.equal(out[2], before[2])


def test_no_tokens(device: str) -> None:
    out, x, weight = workloads.make_identity_inputs(0, seed=3, device=device)
    assert add_identity_(out, x, weight).shape == (0, lite.HIDDEN)


@pytest.mark.gpu
def test_a_captured_call_follows_its_inputs() -> None:
    out, x, weight = workloads.make_identity_inputs(32, seed=0, device="cuda")
    add_identity_(out, x, weight)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        add_identity_(out, x, weight)
    for seed in range(1, 5):
        before, *others = workloads.make_identity_inputs(32, seed=seed, device="cuda")
        for buffer, value in zip((out, x, weight), (before, *others)):
            buffer.copy_(value)
        graph.replay()
        check(out, before, x, weight)
