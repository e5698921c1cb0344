"""The final sum against the exact one (in float64), and which rows it may read.

Bound: half an ulp of the result for the one rounding, plus an fp32 rounding of the largest partial
sum for every term.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from longcat_kernels import lite
from longcat_kernels.expert_sum import finalize, finalize_norm, workloads

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP32_ROUNDING = 2.0**-24
# Triton's interpreter cuts fp32 off to bf16 where the GPU rounds to nearest.
CUTS_OFF = {torch.bfloat16} if "TRITON_INTERPRET" in os.environ else set()


def check(
    got: torch.Tensor, given: workloads.Inputs, identity: bool = True, addend: bool = True
) -> None:
    terms = [given.routed.double().masked_fill((given.ids < 0)[:, :, None], 0.0)]
    if identity:
        terms.append((given.weight.double()[:, None] * given.x.double())[:, None])
    if addend:
        terms.append(given.addend.double()[:, None])
    every = torch.cat(terms, dim=1)
    exact, largest = every.sum(dim=1), every.abs().sum(dim=1)
    info = torch.finfo(got.dtype)
    ulps = 1.0 if got.dtype in CUTS_OFF else 0.5
    bound = ulps * info.eps * (exact.abs() + info.smallest_normal)
    bound = bound + (every.shape[1] + 1) * FP32_ROUNDING * largest
    excess = (got.double() - exact).abs() - bound * 1.01
    assert excess.max() <= 0, f"{int((excess > 0).sum())} elements off, by up to {excess.max()}"


def parts(given: workloads.Inputs, identity: bool, addend: bool) -> tuple[Any, ...]:
    own = (given.x, given.weight) if identity else (None, None)
    return (*own, given.addend if addend else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 1024, 1025, 3072])
def test_widths_and_dtypes(device: str, width: int, dtype: torch.dtype) -> None:
    """Rows without an expert are NaN in the inputs: red if one is read."""
    given = workloads.make_inputs(5, seed=width, device=device, dtype=dtype, width=width)
    got = finalize(given.routed, given.ids, *parts(given, True, True))
    assert got.dtype == dtype
    check(got, given)


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("addend", [False, True])
@pytest.mark.parametrize("top_k", [1, 3, 12])
def test_parts_that_are_left_out(device: str, top_k: int, identity: bool, addend: bool) -> None:
    given = workloads.make_inputs(6, seed=top_k, device=device, width=100, top_k=top_k)
    got = finalize(given.routed, given.ids, *parts(given, identity, addend))
    check(got, given, identity, addend)


def test_a_token_of_identity_experts_only(device: str) -> None:
    given = workloads.make_inputs(3, seed=1, device=device)
    given.ids[1], given.routed[1] = -1, torch.nan
    check(finalize(given.routed, given.ids, *parts(given, True, False)), given, addend=False)
    assert not finalize(given.routed, given.ids)[1].any()


def test_rounds_once(device: str) -> None:
    """2048 + 1 + 1 is 2050 in fp16, whose ulp is 2 here; rounded after each term it stays 2048."""
    routed = torch.tensor([[[2048.0], [1.0]]], dtype=torch.float16, device=device)
    ids = torch.zeros((1, 2), dtype=torch.int32, device=device)
    addend = torch.ones((1, 1), dtype=torch.float16, device=device)
    assert finalize(routed, ids, addend=addend).item() == 2050.0


def test_rows_inside_wider_tensors(device: str) -> None:
    given = workloads.make_inputs(4, seed=2, device=device, width=64)
    wide = torch.cat((given.x, given.x), dim=1)[:, :64]
    got = finalize(given.routed, given.ids, wide, given.weight, given.addend)
    check(got, given)


def test_half_an_identity_part_is_refused(device: str) -> None:
    given = workloads.make_inputs(2, seed=3, device=device, width=8)
    with pytest.raises(ValueError, match="expected both or neither"):
        finalize(given.routed, given.ids, given.x)


def test_no_tokens(device: str) -> None:
    given = workloads.make_inputs(0, seed=4, device=device)
    assert finalize(given.routed, given.ids, given.x, given.weight).shape == (0, lite.HIDDEN)


EPS = 1e-5


def normed(given: workloads.Inputs, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A residual, a norm's weights, and the exact new residual (float64)."""
    random = torch.Generator().manual_seed(seed)
    residual = torch.randn(given.x.shape, generator=random).to(given.x)
    weight = (torch.rand(given.x.shape[1], generator=random) + 0.5).to(given.x)
    routed = given.routed.double().masked_fill((given.ids < 0)[:, :, None], 0.0).sum(dim=1)
    exact = residual.double() + routed + given.weight.double()[:, None] * given.x.double()
    return residual, weight, exact + given.addend.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("width", [7, 1024, 3072])
def test_with_a_norm(device: str, width: int, tokens: int, dtype: torch.dtype) -> None:
    """Red if the residual is not read, not written, or rounded before the norm reads it."""
    given = workloads.make_inputs(tokens, seed=width, device=device, dtype=dtype, width=width)
    residual, weight, exact = normed(given, seed=1)
    options = {"residual": residual, "norm_weight": weight, "eps": EPS}
    got = finalize_norm(given.routed, given.ids, *parts(given, True, True), **options)
    scale = torch.rsqrt(exact.square().mean(dim=1, keepdim=True) + EPS)
    # One rounding each, and the fp32 sums' before it, where terms may cancel.
    tolerance = {"rtol": torch.finfo(dtype).eps * (1.01 if dtype in CUTS_OFF else 0.51)}
    for actual, wanted in ((residual, exact), (got, exact * scale * weight.double())):
        torch.testing.assert_close(actual.double(), wanted, **tolerance, atol=1e-5)


def test_a_norm_needs_its_residual(device: str) -> None:
    given = workloads.make_inputs(2, seed=3, device=device, width=8)
    with pytest.raises(ValueError, match="one per token"):
        finalize_norm(
            given.routed, given.ids, residual=given.x[:1], norm_weight=given.x[0], eps=EPS
        )


@pytest.mark.gpu
def test_a_captured_call_follows_its_inputs() -> None:
    buffers = workloads.make_inputs(32, seed=0, device="cuda")
    finalize(buffers.routed, buffers.ids, *parts(buffers, True, True))  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = finalize(buffers.routed, buffers.ids, *parts(buffers, True, True))
    for seed in range(1, 5):
        given = workloads.make_inputs(32, seed=seed, device="cuda")
        for buffer, value in zip(buffers, given):
            buffer.copy_(value)
        graph.replay()
        check(out, given)
