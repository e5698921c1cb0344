"""MLA decode against the reference, in one token's view at a time.

Tolerance: outputs are averages of N(0, 1) latents rounded to bf16 once (2**-9 relative), the
weights of keys once before the product; 1e-2 of the largest holds both, which with long contexts is
far below 1. Values are products of such a latent with columns of length 1: its ulps may flip.
"""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl

from longcat_kernels import lite
from longcat_kernels.fp8_layout import quantise
from longcat_kernels.mla_decode import (
    FUSED,
    gives_pair,
    is_faster,
    launch,
    mla_decode,
    mla_decode_pair,
    project_values,
    reference,
    workloads,
)
from longcat_kernels.mla_decode._triton import shares_of
from longcat_kernels.mla_prologue import absorb_query, norm_and_store
from longcat_kernels.mla_prologue import workloads as prologue
from longcat_kernels.small_linear import linear

SMALL = {"heads": 4, "rank": 32, "rope": 16}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def shares_kernel(lengths_ptr, out_ptr, tokens, programs, TOKENS: tl.constexpr):
    token = tl.arange(0, TOKENS)
    length = tl.load(lengths_ptr + token, mask=token < tokens, other=0)
    tl.store(out_ptr + token, shares_of(length, programs, 64))


@pytest.fixture(autouse=True)
def fewer_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few, because the interpreter runs idle programs too. 20 are more than a chunk of shares."""
    if INTERPRETED:
        monkeypatch.setattr(launch, "PROGRAMS", 20)


def check(
    inputs: workloads.Inputs, width: int = 1, w_vc: torch.Tensor | None = None
) -> torch.Tensor:
    got = mla_decode(*inputs, scale=workloads.SCALE, width=width, w_vc=w_vc)
    wanted = reference.mla_decode(*inputs, scale=workloads.SCALE, width=width, w_vc=w_vc)
    close(got, wanted)
    return got


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    largest = float(wanted.abs().max())
    torch.testing.assert_close(got.float(), wanted.float(), atol=1e-2 * largest, rtol=1e-2)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 129, 700])
def test_one_request_of_every_length(device: str, length: int) -> None:
    """Red if a split begins or ends a key early, or an empty one counts."""
    check(workloads.make_inputs([length], seed=length, device=device, **SMALL))


@pytest.mark.parametrize("requests", [2, 16, 17, 40])
def test_batches_of_mixed_lengths(device: str, requests: int) -> None:
    lengths = [1 + 37 * i % 211 for i in range(requests)]
    check(workloads.make_inputs(lengths, seed=requests, device=device, **SMALL))


@pytest.mark.parametrize("width", [2, 4])
def test_a_draft_sees_the_drafts_before_it_only(device: str, width: int) -> None:
    inputs = workloads.make_inputs(
        [width, 70, 129], seed=width, device=device, width=width, **SMALL
    )
    before = check(inputs, width)
    last = inputs.pages[inputs.requests[1], 69]
    inputs.latents[last] = 7.0  # the last draft of the second request
    after = check(inputs, width)
    rows = torch.arange(3 * width, device=before.device)
    changed = (before != after).flatten(1).any(dim=1)
    assert rows[changed].tolist() == [2 * width - 1]


def test_queries_inside_wider_tensors(device: str) -> None:
    inputs = workloads.make_inputs([50, 3], seed=3, device=device, **SMALL)
    wide = torch.cat([inputs.q_nope, inputs.q_pe], dim=-1)
    views = inputs._replace(q_nope=wide[..., :32], q_pe=wide[..., 32:])
    assert torch.equal(check(views), check(inputs))


def test_what_lies_behind_a_request_is_not_read(device: str) -> None:
    """NaN in unused rows and beyond the position: a masked weight of 0 times NaN would be NaN."""
    inputs = workloads.make_inputs([66, 5], seed=4, device=device, **SMALL)
    used = torch.cat([inputs.pages[inputs.requests[i], :n] for i, n in enumerate((66, 5))])
    spare = torch.ones(inputs.latents.shape[0], dtype=torch.bool, device=inputs.latents.device)
    spare[used.long()] = False
    inputs.latents[spare] = float("nan")
    assert check(inputs).isfinite().all()


def small_values(device: str, values: int = 8) -> torch.Tensor:
    return workloads.make_values(seed=7, device=device, heads=4, rank=32, values=values)


@pytest.mark.parametrize(("length", "values"), [(1, 72), (65, 128), (1100, 8)])
def test_the_value_projection(device: str, length: int, values: int) -> None:
    """Red if a block of columns, a chunk of shares or a head's weights are left out or mixed up:
    1,100 keys are more than one chunk, 72 columns are no power of two."""
    inputs = workloads.make_inputs([length], seed=length, device=device, **SMALL)
    w_vc = small_values(device, values)
    got = check(inputs, w_vc=w_vc)
    assert torch.equal(got, mla_decode(*inputs, scale=workloads.SCALE, w_vc=w_vc.contiguous()))


@pytest.mark.parametrize(("requests", "width"), [(3, 1), (2, 4), (1, 8), (FUSED + 1, 1), (3, 4)])
def test_the_value_projection_of_batches_and_windows(
    device: str, requests: int, width: int
) -> None:
    """Up to FUSED tokens the second launch multiplies, beyond it torch does: both round alike."""
    lengths = [width + 97 * i % 110 for i in range(requests)]
    inputs = workloads.make_inputs(lengths, seed=8, device=device, width=width, **SMALL)
    w_vc = small_values(device)
    apart = project_values(mla_decode(*inputs, scale=workloads.SCALE, width=width), w_vc)
    close(check(inputs, width, w_vc), apart)


@pytest.mark.parametrize(("requests", "width"), [(3, 1), (1, 4)])
def test_quantised_values(device: str, requests: int, width: int) -> None:
    """Red if a head's scale is another head's or token's, or if values are quantised unrounded."""
    lengths = [width + 97 * i for i in range(requests)]
    inputs = workloads.make_inputs(lengths, seed=3, device=device, width=width, **SMALL)
    check_pair(
        inputs, width, small_values(device, 128) * torch.arange(1, 5, device=device)[:, None, None]
    )


def check_pair(inputs: workloads.Inputs, width: int, w_vc: torch.Tensor) -> None:
    options = {"scale": workloads.SCALE, "width": width, "w_vc": w_vc}
    q, scales = mla_decode_pair(*inputs, **options)
    wanted, wanted_scales = quantise(mla_decode(*inputs, **options).flatten(1))
    assert scales.stride() == wanted_scales.stride()
    torch.testing.assert_close(scales, wanted_scales, rtol=2**-7, atol=0)
    # The values of both are the same bf16 numbers. GPUs divide 448 by the largest one less exactly
    # than torch, so a number half-way between two FP8 values may go to the other.
    torch.testing.assert_close(q.float(), wanted.float(), rtol=2**-3, atol=2**-9)
    assert float((q.float() != wanted.float()).float().mean()) < 1e-2


def test_values_that_are_not_a_group_of_their_own_stay_bf16(device: str) -> None:
    inputs = workloads.make_inputs([9] * 3, seed=3, device=device, **SMALL)
    assert not gives_pair(3, 64)
    assert not gives_pair(2, 128)  # two programs share a head's values
    assert not gives_pair(FUSED + 1, 128)  # torch multiplies
    with pytest.raises(ValueError, match="128 values"):
        mla_decode_pair(*inputs, scale=1.0, w_vc=small_values(device, 64))


@pytest.mark.parametrize(
    "lengths", [[4096], [1], [64] * 30, [131_072, *[100] * 29], [5000 - 70 * i for i in range(64)]]
)
def test_programs_are_dealt_in_proportion_to_keys(device: str, lengths: list[int]) -> None:
    """Red if the shares need more programs than there are, if a token gets none, or if a program of
    a long context gets many more keys than the others."""
    if device == "cpu" and not INTERPRETED:
        pytest.skip("Triton only; the reference has no programs")
    programs, blocks = launch.programs_for(len(lengths)), [-(-n // 64) for n in lengths]
    given = torch.tensor(lengths, dtype=torch.int32, device=device)
    out = torch.empty(64, dtype=torch.int32, device=device)
    shares_kernel[(1,)](given, out, len(lengths), programs, TOKENS=64)
    shares = out[: len(lengths)].tolist()
    assert sum(shares) <= programs
    assert min(shares) >= 1
    assert not out[len(lengths) :].any()
    largest = max(-(-n // share) for n, share in zip(blocks, shares, strict=True))
    fewest = next(n for n in range(1, 9999) if sum(-(-b // n) for b in blocks) <= programs)
    assert largest <= 1.0625 * fewest + 1


def test_where_it_pays() -> None:
    """Red if `is_faster` ignores that each token of a window reads all keys again."""
    assert [is_faster(requests, 1, 1 << 20) for requests in (1, 8, 9)] == [True, True, False]
    assert [is_faster(1, width, 32768) for width in (2, 4, 8, 9)] == [True, True, True, False]
    assert not is_faster(1, 2, 32769)
    assert not is_faster(2, 2, 4096)


def test_no_tokens(device: str) -> None:
    inputs = workloads.make_inputs([], seed=5, device=device, **SMALL)
    assert mla_decode(*inputs, scale=1.0).shape == (0, 4, 32)
    assert mla_decode(*inputs, scale=1.0, w_vc=small_values(device)).shape == (0, 4, 8)


def test_weights_of_other_heads_are_refused(device: str) -> None:
    inputs = workloads.make_inputs([9], seed=6, device=device, **SMALL)
    with pytest.raises(ValueError, match=r"expected \[4, 32, V\]"):
        mla_decode(*inputs, scale=1.0, w_vc=small_values(device).transpose(1, 2))


def test_a_width_that_does_not_fit_is_refused(device: str) -> None:
    inputs = workloads.make_inputs([9, 9], seed=6, device=device, **SMALL)
    with pytest.raises(ValueError, match="expected 6"):
        mla_decode(*inputs, scale=1.0, width=3)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("length", [64, 4096])
def test_a_captured_layer_sees_the_keys_it_stores(width: int, length: int) -> None:
    """Red if a program reads keys before the launch that stores them, three launches ahead, ends.
    This happens if `absorb_query` lets the next kernel start before its own wait. The rows hold NaN
    until then, and the projection between the two takes long enough to be overtaken."""
    inputs = workloads.make_inputs([length], seed=0, device="cuda", width=width)
    before = prologue.make_inputs(width, seed=0, device="cuda")
    w_qb = torch.randn(lite.HEADS * 192, lite.Q_LORA, device="cuda").bfloat16() / 40
    slots = inputs.pages[inputs.requests[0], length - width : length].long()
    angles = {"positions": inputs.positions, "cos_sin": before.cos_sin}
    queries: list[torch.Tensor] = []

    def step() -> torch.Tensor:
        q_lora = norm_and_store(
            before.qkv,
            before.q_weight,
            before.kv_weight,
            eps=lite.EPS,
            slots=slots,
            kv_buffer=inputs.latents[:, None],
            **angles,
        )
        query = absorb_query(
            linear(q_lora, w_qb).view(width, lite.HEADS, 192), before.w_kc, **angles
        )
        queries[:] = query[..., : lite.KV_LORA], query[..., lite.KV_LORA :]
        return mla_decode(*queries, *inputs[2:], scale=workloads.SCALE, width=width)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for seed in range(1, 50):
        before.qkv.copy_(prologue.make_inputs(width, seed=seed, device="cuda").qkv)
        inputs.latents[slots] = float("nan")
        graph.replay()
        assert inputs.latents[slots].isfinite().all()
        wanted = reference.mla_decode(*queries, *inputs[2:], scale=workloads.SCALE, width=width)
        close(out, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [32, 16])
@pytest.mark.parametrize(("requests", "width"), [(1, 1), (1, 4), (8, 1), (8, 4), (30, 1), (129, 1)])
def test_the_models_sizes(requests: int, width: int, heads: int) -> None:
    lengths = [4096 - 13 * i for i in range(requests)]
    inputs = workloads.make_inputs(lengths, seed=1, device="cuda", width=width, heads=heads)
    check(inputs, width)
    w_vc = workloads.make_values(seed=2, device="cuda", heads=heads)
    check(inputs, width, w_vc)
    if gives_pair(requests * width, w_vc.shape[-1]):
        check_pair(inputs, width, w_vc)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("lengths", "width"),
    [([131_072], 1), ([70_000, 9_000], 1), ([20_000], 8), ([40_000, *[5] * 29], 1)],
)
def test_long_contexts(lengths: list[int], width: int) -> None:
    """All programs in use, with several blocks of keys each. A second run gives the same bits."""
    inputs = workloads.make_inputs(lengths, seed=1, device="cuda", width=width)
    w_vc = workloads.make_values(seed=2, device="cuda")
    check(inputs, width)
    once = check(inputs, width, w_vc)
    assert torch.equal(once, mla_decode(*inputs, scale=workloads.SCALE, width=width, w_vc=w_vc))


@pytest.mark.gpu
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("requests", [1, 2, 4])
def test_a_captured_step_follows_positions_and_pages(requests: int, values: bool) -> None:
    """Red if a replay uses the number of shares, or a partial result, of the capture."""
    w_vc = workloads.make_values(seed=9, device="cuda") if values else None
    inputs = workloads.make_inputs([4096] * requests, seed=0, device="cuda")
    mla_decode(*inputs, scale=workloads.SCALE, w_vc=w_vc)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mla_decode(*inputs, scale=workloads.SCALE, w_vc=w_vc)
    for seed, lengths in enumerate(([4096, 1, 70, 4000], [64, 65, 128, 2], [3000] * 4), start=1):
        fresh = workloads.make_inputs([4096] * requests, seed=seed, device="cuda")
        for buffer, value in zip(inputs, fresh, strict=True):
            buffer.copy_(value)
        inputs.positions.copy_(torch.tensor(lengths[:requests]) - 1)
        graph.replay()
        wanted = reference.mla_decode(*inputs, scale=workloads.SCALE, w_vc=w_vc)
        close(out, wanted)
