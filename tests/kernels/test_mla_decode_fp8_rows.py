"""MLA decode over FP8 rows: the same attention as over the bf16 rows that they stand for.

The tolerance is that of test_mla_decode.py. The reference widens rows by `kv_rows.unpack`, which
test_kv_rows.py judges.
"""

from __future__ import annotations

import pytest
import torch

from longcat_kernels import kv_rows, lite
from longcat_kernels.mla_decode import launch, mla_decode, reference, workloads
from longcat_kernels.mla_prologue import absorb_query, norm_and_store
from longcat_kernels.mla_prologue import workloads as prologue
from tests.kernels.interpreter import INTERPRETED, round_to_bf16
from tests.kernels.test_mla_decode import close

SMALL = {"heads": 4, "rank": 32, "rope": 16, "fp8": True}


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs, because the interpreter runs idle ones too; 20 are more than a chunk of shares.
    And bf16 rounded to nearest: the interpreter cuts fp32 off, here in four places after another,
    which makes all values smaller by up to 2 %."""
    if INTERPRETED:
        monkeypatch.setattr(launch, "PROGRAMS", 20)
        round_to_bf16(monkeypatch)


def check(
    inputs: workloads.Inputs, width: int = 1, w_vc: torch.Tensor | None = None
) -> torch.Tensor:
    got = mla_decode(*inputs, scale=workloads.SCALE, width=width, w_vc=w_vc)
    close(got, plain(inputs, width, w_vc))
    return got


def plain(
    inputs: workloads.Inputs, width: int = 1, w_vc: torch.Tensor | None = None
) -> torch.Tensor:
    """The reference over bf16 rows of the same values."""
    rows = kv_rows.unpack(inputs.latents, inputs.q_nope.shape[-1])
    inputs = inputs._replace(latents=rows)
    return reference.mla_decode(*inputs, scale=workloads.SCALE, width=width, w_vc=w_vc)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 129, 700])
def test_one_request_of_every_length(device: str, length: int) -> None:
    """Red if a tail reads rows or scales of other tokens."""
    check(workloads.make_inputs([length], seed=length, device=device, **SMALL))


def test_every_quarter_has_its_own_scale(device: str) -> None:
    """Red if a quarter takes the scale of another: they differ a hundred times and more."""
    inputs = workloads.make_inputs([70, 3], seed=1, device=device, **SMALL)
    rows = kv_rows.unpack(inputs.latents, 32)
    spread = torch.tensor([1e-3, 0.1, 1.0, 30.0], device=rows.device).repeat_interleave(8)
    rows[:, :32] *= spread
    inputs = inputs._replace(latents=kv_rows.pack(rows, 32))
    got, wanted = check(inputs), plain(inputs)
    for quarter in range(4):
        columns = slice(8 * quarter, 8 * quarter + 8)
        close(got[..., columns], wanted[..., columns])


@pytest.mark.parametrize("requests", [2, 17, 40])
def test_batches_of_mixed_lengths(device: str, requests: int) -> None:
    lengths = [1 + 37 * i % 211 for i in range(requests)]
    check(workloads.make_inputs(lengths, seed=requests, device=device, **SMALL))


@pytest.mark.parametrize("width", [2, 4])
def test_a_draft_sees_the_drafts_before_it_only(device: str, width: int) -> None:
    lengths = [width, 70, 129]
    inputs = workloads.make_inputs(lengths, seed=width, device=device, width=width, **SMALL)
    before = check(inputs, width)
    last = inputs.pages[inputs.requests[1], 69].long()
    inputs.latents[last] = kv_rows.pack(torch.full((48,), 7.0, device=before.device).bfloat16(), 32)
    after = check(inputs, width)
    changed = (before != after).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [2 * width - 1]


@pytest.mark.parametrize("layout", ["in order", "backwards", "shared"])
def test_page_layouts(device: str, layout: str) -> None:
    """Tokens of a request lie in order, backwards, or belong to two requests (a common prefix)."""
    inputs = workloads.make_inputs([140, 140], seed=2, device=device, **SMALL)
    rows = torch.arange(1, 141, device=inputs.pages.device, dtype=torch.int32)
    for slot, first in zip(inputs.requests.tolist(), (0, 140), strict=True):
        mine = rows + (0 if layout == "shared" else first)
        inputs.pages[slot] = mine.flip(0) if layout == "backwards" else mine
    check(inputs)


def test_rows_inside_a_wider_pool(device: str) -> None:
    """Red if the stride of a row is taken for its width."""
    inputs = workloads.make_inputs([66, 5], seed=3, device=device, **SMALL)
    pool = torch.zeros(len(inputs.latents), 96, dtype=torch.uint8, device=inputs.latents.device)
    pool[:, :80] = inputs.latents
    assert torch.equal(check(inputs), check(inputs._replace(latents=pool[:, :80])))


def test_what_lies_behind_a_request_is_not_read(device: str) -> None:
    """NaN in values, scales and rope parts of unused rows: 0x7F7F is NaN in e4m3, 0xFF in all."""
    inputs = workloads.make_inputs([66, 5], seed=4, device=device, **SMALL)
    used = torch.cat([inputs.pages[inputs.requests[i], :n] for i, n in enumerate((66, 5))])
    spare = torch.ones(inputs.latents.shape[0], dtype=torch.bool, device=inputs.latents.device)
    spare[used.long()] = False
    inputs.latents[spare] = 0xFF
    assert check(inputs).isfinite().all()


@pytest.mark.parametrize(("requests", "width"), [(1, 1), (1, 4), (3, 4)])
def test_the_value_projection(device: str, requests: int, width: int) -> None:
    lengths = [width + 97 * i % 110 for i in range(requests)]
    inputs = workloads.make_inputs(lengths, seed=8, device=device, width=width, **SMALL)
    check(inputs, width, workloads.make_values(seed=7, device=device, heads=4, rank=32, values=24))


@pytest.mark.parametrize("width", [1, 4])
def test_the_models_widths(device: str, width: int) -> None:
    inputs = workloads.make_inputs([width + 66], seed=9, device=device, width=width, fp8=True)
    check(inputs, width)


def test_a_row_of_another_width_is_refused(device: str) -> None:
    inputs = workloads.make_inputs([9], seed=6, device=device, **SMALL)
    with pytest.raises(ValueError, match=r"expected \[rows, 80\]"):
        mla_decode(*inputs._replace(latents=inputs.latents[:, :64]), scale=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [32, 16])
@pytest.mark.parametrize(("requests", "width"), [(1, 1), (1, 4), (8, 1), (8, 4), (30, 4), (129, 1)])
def test_the_models_sizes(requests: int, width: int, heads: int) -> None:
    lengths = [4096 - 13 * i for i in range(requests)]
    inputs = workloads.make_inputs(
        lengths, seed=1, device="cuda", width=width, heads=heads, fp8=True
    )
    check(inputs, width)
    check(inputs, width, workloads.make_values(seed=2, device="cuda", heads=heads))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("lengths", "width"),
    [([131_072], 1), ([250_000], 4), ([70_000, 9_000], 1), ([40_000, *[5] * 29], 1)],
)
def test_long_contexts(lengths: list[int], width: int) -> None:
    """All programs in use, with several blocks of keys each. A second run gives the same bits."""
    inputs = workloads.make_inputs(lengths, seed=1, device="cuda", width=width, fp8=True)
    w_vc = workloads.make_values(seed=2, device="cuda")
    once = check(inputs, width, w_vc)
    assert torch.equal(once, mla_decode(*inputs, scale=workloads.SCALE, width=width, w_vc=w_vc))


@pytest.mark.gpu
@pytest.mark.parametrize("requests", [1, 4])
def test_a_captured_step_follows_positions_and_pages(requests: int) -> None:
    w_vc = workloads.make_values(seed=9, device="cuda")
    inputs = workloads.make_inputs([4096] * requests, seed=0, device="cuda", fp8=True)
    mla_decode(*inputs, scale=workloads.SCALE, w_vc=w_vc)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mla_decode(*inputs, scale=workloads.SCALE, w_vc=w_vc)
    for seed, lengths in enumerate(([4096, 1, 70, 4000], [64, 65, 128, 2], [3000] * 4), start=1):
        fresh = workloads.make_inputs([4096] * requests, seed=seed, device="cuda", fp8=True)
        for buffer, value in zip(inputs, fresh, strict=True):
            buffer.copy_(value)
        inputs.positions.copy_(torch.tensor(lengths[:requests]) - 1)
        graph.replay()
        close(out, plain(inputs, 1, w_vc))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("length", [64, 4096])
def test_a_captured_layer_sees_the_keys_it_stores(width: int, length: int) -> None:
    """Red if a program reads a row before the launch that stores it, two launches ahead, ends. The
    row's bytes are NaN until then."""
    inputs = workloads.make_inputs([length], seed=0, device="cuda", width=width, fp8=True)
    before = prologue.make_inputs(width, seed=0, device="cuda")
    slots = inputs.pages[inputs.requests[0], length - width : length].long()
    angles = {"positions": inputs.positions, "cos_sin": before.cos_sin}
    queries: list[torch.Tensor] = []

    def step() -> torch.Tensor:
        norm_and_store(
            before.qkv,
            before.q_weight,
            before.kv_weight,
            eps=lite.EPS,
            slots=slots,
            kv_buffer=inputs.latents[:, None],
            **angles,
        )
        query = absorb_query(before.q, before.w_kc, **angles)
        queries[:] = query[..., : lite.KV_LORA], query[..., lite.KV_LORA :]
        return mla_decode(*queries, *inputs[2:], scale=workloads.SCALE, width=width)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for seed in range(1, 50):
        before.qkv.copy_(prologue.make_inputs(width, seed=seed, device="cuda").qkv)
        inputs.latents[slots] = 0xFF
        graph.replay()
        assert out.isfinite().all()
        close(out, plain(inputs._replace(q_nope=queries[0], q_pe=queries[1]), width))
