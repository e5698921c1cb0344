"""MLA's prologue against the formulas in float64, and what it must leave alone.

Bound: half an ulp of the result for its one rounding, plus the fp32 rounding of the terms it is
summed from. So two implementations that both pass differ by an ulp at most, unless terms cancel.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from longcat_kernels import lite
from longcat_kernels.fp8_layout import GROUP, Pair, quantise, widen
from longcat_kernels.kv_pool import PADDING_SLOT
from longcat_kernels.mla_prologue import (
    FUSED_TOKENS,
    absorb_query,
    norm_and_store,
    norm_quantise_and_store,
)
from longcat_kernels.mla_prologue.workloads import Inputs, make_inputs

TOKENS = (0, 1, 2, 15, 16, 17, FUSED_TOKENS, FUSED_TOKENS + 1, 127, 128, 129)
NARROW = [(tokens, dtype) for tokens in (1, 5) for dtype in (torch.bfloat16, torch.float16)]
STORED = [(tokens, torch.float32) for tokens in (0, 1, 2, 17, 129)] + NARROW
ABSORBED = [(tokens, torch.float32) for tokens in TOKENS] + NARROW
SMALL = {"heads": 2, "q_lora": 96, "kv_lora": 128, "nope": 48, "rope": 16, "context": 300}
FP32 = 2.0**-22  # a few roundings to fp32 and its rsqrt
# Triton's interpreter cuts fp32 off to bf16 where the GPU rounds to nearest, and multiplies bf16
# matrices as if their bits were integers.
INTERPRETED = "TRITON_INTERPRET" in os.environ
CUTS_OFF = {torch.bfloat16} if INTERPRETED else set()
SERVED = torch.float16 if INTERPRETED else torch.bfloat16


def check(got: torch.Tensor, exact: torch.Tensor, terms: torch.Tensor) -> None:
    """terms: the sum of the magnitudes that `exact` is a sum of."""
    info = torch.finfo(got.dtype)
    ulps = 1.0 if got.dtype in CUTS_OFF else 0.5
    bound = ulps * info.eps * (exact.abs() + info.smallest_normal) + FP32 * terms
    excess = (got.double() - exact).abs() - bound * 1.01
    assert excess.numel() == 0 or excess.max() <= 0, (
        f"{int((excess > 0).sum())} elements off, by up to {excess.max()}"
    )


def exact_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(dim=1, keepdim=True) + lite.EPS).sqrt() * weight.double()


def exact_rope(x: torch.Tensor, inputs: Inputs, *, neox: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, heads, P] by complex multiplication, and the magnitudes of its terms."""
    half = x.shape[-1] // 2
    order = torch.arange(2 * half, device=x.device)
    if not neox:  # bring the pairs' first halves to the front
        order = order.view(half, 2).t().flatten()
    real, imaginary = x.double()[..., order].split(half, dim=-1)
    turn = inputs.cos_sin[inputs.positions].double()[:, None]
    turned = torch.complex(real, imaginary) * torch.complex(turn[..., :half], turn[..., half:])
    out = torch.cat((turned.real, turned.imag), dim=-1)[..., order.argsort()]
    return out, x.double().abs().amax(dim=-1, keepdim=True) * 2


def store(inputs: Inputs, *, neox: bool = False, **changed: torch.Tensor) -> torch.Tensor:
    args = {name: getattr(inputs, name) for name in ("positions", "cos_sin", "slots", "kv_buffer")}
    return norm_and_store(
        inputs.qkv, inputs.q_weight, inputs.kv_weight, eps=lite.EPS, neox=neox, **(args | changed)
    )


def store_quantised(inputs: Inputs) -> Pair:
    args = {name: getattr(inputs, name) for name in ("positions", "cos_sin", "slots", "kv_buffer")}
    return norm_quantise_and_store(
        inputs.qkv, inputs.q_weight, inputs.kv_weight, eps=lite.EPS, **args
    )


def check_quantised(pair: Pair, q_lora: torch.Tensor) -> None:
    """q_lora: the same latent, not quantised. The pair is within fp8's rounding of it."""
    (q, scales), (wanted_q, wanted_scales) = pair, quantise(q_lora)
    tokens = len(q_lora)
    assert (q.shape, q.dtype) == (wanted_q.shape, wanted_q.dtype)
    assert q.is_contiguous()
    assert scales.shape == wanted_scales.shape
    assert tokens == 0 or scales.stride() == (1, -(-tokens // 4) * 4)  # what DeepGEMM's TMA reads
    torch.testing.assert_close(scales, wanted_scales, rtol=2.0**-22, atol=0.0)
    # Half of what 3 bits of mantissa tell apart, or of the smallest number.
    bound = 2.0**-4 * q_lora.float().abs() + scales.repeat_interleave(GROUP, dim=1) * 2.0**-10
    assert ((widen(pair) - q_lora.float()).abs() <= bound * 1.001).all()
    # A division's last bit moves a tie: on an H200 3 of one token's 1,536 values.
    others = int((q.view(torch.uint8) != wanted_q.view(torch.uint8)).sum())
    assert others <= max(3, q.numel() // 1000)


def absorb(inputs: Inputs, *, neox: bool = False) -> torch.Tensor:
    return absorb_query(
        inputs.q, inputs.w_kc, positions=inputs.positions, cos_sin=inputs.cos_sin, neox=neox
    )


def check_stored(q_lora: torch.Tensor, inputs: Inputs, before: torch.Tensor, *, neox: bool) -> None:
    widths = inputs.q_weight.shape[0], inputs.kv_weight.shape[0], inputs.cos_sin.shape[1]
    q, latent, key = inputs.qkv.split(widths, dim=1)
    for got, x, weight in (
        (q_lora, q, inputs.q_weight),
        (inputs.kv_buffer[inputs.slots, 0, : widths[1]], latent, inputs.kv_weight),
    ):
        check(got, exact := exact_norm(x, weight), exact.abs())
    exact, terms = exact_rope(key[:, None], inputs, neox=neox)
    check(inputs.kv_buffer[inputs.slots][..., widths[1] :], exact, terms)
    others = torch.ones(len(before), dtype=torch.bool)
    others[inputs.slots.cpu()] = False
    assert torch.equal(inputs.kv_buffer[others], before[others])


def check_absorbed(query: torch.Tensor, inputs: Inputs, *, neox: bool) -> None:
    nope, latent = inputs.w_kc.shape[1:]
    assert query.is_contiguous()
    q, w_kc = inputs.q[..., :nope].double(), inputs.w_kc.double()
    exact, terms = (
        torch.einsum("thn,hnr->thr", a, b) for a, b in ((q, w_kc), (q.abs(), w_kc.abs()))
    )
    # On tensor cores the products of a row are summed with one bit less.
    check(query[..., :latent], exact, terms * 4)
    check(query[..., latent:], *exact_rope(inputs.q[..., nope:], inputs, neox=neox))


@pytest.mark.parametrize(("tokens", "dtype"), STORED, ids=str)
def test_rows_are_normed_and_stored(device: str, tokens: int, dtype: torch.dtype) -> None:
    """Red if latents, weights, angles or slots are mixed up: every element has one right value."""
    inputs = make_inputs(tokens, seed=tokens, device=device, dtype=dtype, **SMALL)
    before = inputs.kv_buffer.clone()
    q_lora = store(inputs)
    assert q_lora.dtype == dtype
    check_stored(q_lora, inputs, before, neox=False)


@pytest.mark.parametrize("tokens", [0, 1, 2, 127, 128, 129])
def test_a_quantised_query_latent(device: str, tokens: int) -> None:
    """Red if a group gets another's scale, or if the layout is not the one that the GEMM reads. 384
    columns are half a block more than a power of two: the groups beyond must not be written."""
    inputs = make_inputs(
        tokens, seed=tokens, device=device, dtype=SERVED, **SMALL | {"q_lora": 384}
    )
    spread = torch.tensor([0.01, 1.0, 100.0], device=device, dtype=SERVED)
    inputs.q_weight.mul_(spread.repeat_interleave(GROUP))
    before = inputs.kv_buffer.clone()
    q_lora = store(inputs)
    stored = inputs.kv_buffer.clone()
    inputs.kv_buffer.copy_(before)
    check_quantised(store_quantised(inputs), q_lora)
    assert torch.equal(inputs.kv_buffer, stored)


def test_a_quantised_row_of_zeros(device: str) -> None:
    """Padded rows: 0 / 0 would be NaN, and the GEMM would spread it."""
    inputs = make_inputs(2, seed=5, device=device, dtype=SERVED, **SMALL | {"q_lora": 256})
    inputs.qkv.zero_()
    q, scales = store_quantised(inputs)
    assert not q.float().any()
    assert (scales > 0).all()
    assert scales.isfinite().all()


def test_a_latent_without_whole_groups_is_refused(device: str) -> None:
    inputs = make_inputs(2, seed=6, device=device, **SMALL)
    with pytest.raises(ValueError, match="96 columns: expected a multiple of 128"):
        store_quantised(inputs)


@pytest.mark.parametrize(("tokens", "dtype"), ABSORBED, ids=str)
def test_queries_are_absorbed(device: str, tokens: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(tokens, seed=tokens, device=device, dtype=dtype, **SMALL)
    query = absorb(inputs)
    assert query.dtype == dtype
    if dtype not in CUTS_OFF:
        check_absorbed(query, inputs, neox=False)


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_models_own_sizes(device: str, tokens: int) -> None:
    inputs = make_inputs(tokens, seed=1, device=device, dtype=SERVED, heads=4)
    before = inputs.kv_buffer.clone()
    check_stored(store(inputs), inputs, before, neox=False)
    check_absorbed(absorb(inputs), inputs, neox=False)


@pytest.mark.parametrize("tokens", [2, FUSED_TOKENS + 1])
def test_rope_of_halves(device: str, tokens: int) -> None:
    """The two styles also differ here, so that the tests above can tell them apart."""
    inputs = make_inputs(tokens, seed=2, device=device, dtype=torch.float32, **SMALL)
    before = inputs.kv_buffer.clone()
    check_stored(store(inputs, neox=True), inputs, before, neox=True)
    check_absorbed(absorb(inputs, neox=True), inputs, neox=True)
    with pytest.raises(AssertionError, match="elements off"):
        check_absorbed(absorb(inputs, neox=True), inputs, neox=False)


def test_rows_inside_wider_tensors(device: str) -> None:
    """A slice of another projection's output, and a pool whose rows lie apart."""
    inputs = make_inputs(5, seed=3, device=device, dtype=torch.float32, **SMALL)
    pool = torch.cat((inputs.kv_buffer, inputs.kv_buffer), dim=-1)
    before = pool.clone()
    width = inputs.kv_buffer.shape[-1]
    wide = dataclasses.replace(
        inputs,
        qkv=torch.cat((inputs.qkv, inputs.qkv), dim=1)[:, : inputs.qkv.shape[1]],
        kv_buffer=pool[..., :width],
        q=torch.cat((inputs.q, inputs.q), dim=-1)[..., : inputs.q.shape[-1]],
        w_kc=inputs.w_kc.contiguous(),
    )
    check_stored(store(wide), wide, before[..., :width], neox=False)
    check_absorbed(absorb(wide), wide, neox=False)
    assert torch.equal(pool[..., width:], before[..., width:])


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_the_padding_slot_keeps_its_bits(device: str, index: torch.dtype) -> None:
    """Rows that fill up a graph's batch all have slot 0. The other rows are still stored."""
    inputs = make_inputs(6, seed=4, device=device, dtype=torch.float32, **SMALL)
    before = inputs.kv_buffer.clone()
    padded = inputs.slots.clone()
    padded[[1, 4, 5]] = PADDING_SLOT
    q_lora = store(inputs, slots=padded.to(index), positions=inputs.positions.to(index))
    assert torch.equal(inputs.kv_buffer[0], before[0])
    live = torch.tensor([0, 2, 3])
    kept = {name: getattr(inputs, name)[live] for name in ("qkv", "positions", "slots", "q")}
    check_stored(q_lora[live], dataclasses.replace(inputs, **kept), before, neox=False)


def test_a_row_of_zeros_is_normed_to_zeros(device: str) -> None:
    """eps is inside the root. Without it a row of zeros would be 0 * inf, which is NaN."""
    inputs = make_inputs(2, seed=5, device=device, dtype=torch.float32, **SMALL)
    inputs.qkv.zero_()
    assert not store(inputs).any()
    assert not inputs.kv_buffer[inputs.slots].any()


def test_sizes_that_do_not_fit_are_refused(device: str) -> None:
    inputs = make_inputs(2, seed=6, device=device, **SMALL)
    with pytest.raises(ValueError, match=r"expected 96 \+ 128 \+ 16 columns"):
        store(dataclasses.replace(inputs, qkv=inputs.qkv[:, 1:]))
    with pytest.raises(ValueError, match="expected one dtype"):
        store(inputs, kv_buffer=inputs.kv_buffer.float())
    with pytest.raises(ValueError, match=r"expected the same heads, and 48 \+ 16 columns"):
        absorb(dataclasses.replace(inputs, q=inputs.q[..., 1:]))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 30, 128])
def test_a_captured_step_follows_its_inputs(tokens: int) -> None:
    static = make_inputs(tokens, seed=0, device="cuda")
    store(static)  # compiles
    absorb(static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q_lora, query = store(static), absorb(static)
    for seed in range(1, 5):
        fresh = make_inputs(tokens, seed=seed, device="cuda")
        for field in dataclasses.fields(Inputs):
            getattr(static, field.name).copy_(getattr(fresh, field.name))
        graph.replay()
        check_stored(q_lora, static, fresh.kv_buffer, neox=False)
        check_absorbed(query, static, neox=False)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 30, 128])
def test_a_captured_quantised_step_follows_its_inputs(tokens: int) -> None:
    static = make_inputs(tokens, seed=0, device="cuda")
    store_quantised(static)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pair = store_quantised(static)
    for seed in range(1, 5):
        fresh = make_inputs(tokens, seed=seed, device="cuda")
        for field in dataclasses.fields(Inputs):
            getattr(static, field.name).copy_(getattr(fresh, field.name))
        graph.replay()
        check_quantised(pair, store(static))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 30, 200])
def test_an_ulp_from_the_separate_kernels(tokens: int) -> None:
    """Against the kernels that SGLang launches otherwise. Red if one of them rounds elsewhere."""
    from sgl_kernel import rmsnorm
    from sglang.kernels.ops.attention.rope import apply_rope_with_cos_sin_cache_inplace
    from sglang.kernels.ops.kvcache.mla_buffer import set_mla_kv_buffer_triton

    inputs = make_inputs(tokens, seed=7, device="cuda")
    pool, q = inputs.kv_buffer.clone(), inputs.q.clone()
    wide, latent, key = inputs.qkv.clone().split((lite.Q_LORA, lite.KV_LORA, lite.ROPE), dim=1)
    latent = rmsnorm(latent, inputs.kv_weight, lite.EPS)[:, None]
    absorbed = torch.bmm(q[..., : lite.NOPE].transpose(0, 1), inputs.w_kc).transpose(0, 1)
    apply_rope_with_cos_sin_cache_inplace(
        q[..., lite.NOPE :], key[:, None], inputs.cos_sin, inputs.positions, is_neox=False
    )
    set_mla_kv_buffer_triton(pool, inputs.slots, latent, key[:, None])
    query = torch.cat((absorbed, q[..., lite.NOPE :]), dim=-1)
    for ours, theirs in (
        (store(inputs), rmsnorm(wide, inputs.q_weight, lite.EPS)),
        (inputs.kv_buffer, pool),
        (absorb(inputs), query),
    ):
        ulp = 2.0**-7 * theirs.float().abs() + 1e-6
        assert ((ours.float() - theirs.float()).abs() <= ulp).float().mean() > 0.9999
