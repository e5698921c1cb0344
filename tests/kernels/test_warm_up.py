"""After the warm-up nothing is left to compile, whatever serving feeds the ops.

"sm_90" runs Triton's launch path and compiler on CPU tensors, without a device behind them; only
"cuda" proves that the kernels also load.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import longcat_kernels
from longcat_kernels import (
    expert_sum,
    kv_expand,
    kv_store,
    lite,
    mla_decode,
    mla_prologue,
    moe_router,
    ngram,
    packed_linear,
    small_linear,
)
from longcat_kernels.compile_only import compile_only
from longcat_kernels.dispatch import is_hopper
from longcat_kernels.expert_sum import workloads as sum_workloads
from longcat_kernels.kv_expand import workloads as expand_workloads
from longcat_kernels.kv_store import workloads as store_workloads
from longcat_kernels.mla_decode import workloads as decode_workloads
from longcat_kernels.mla_prologue import workloads as prologue_workloads
from longcat_kernels.moe_router import workloads as router_workloads
from longcat_kernels.ngram import Prefill
from longcat_kernels.ngram import workloads as ngram_workloads
from longcat_kernels.packed_linear import warm_up as packed_warm_up
from longcat_kernels.packed_linear import workloads as packed_workloads
from longcat_kernels.small_linear import workloads as linear_workloads
from longcat_kernels.warm_up import OPS, Sizes, compilations, main, warm_up

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing to compile")

BATCHES = (1, 2, 3, 15, 16, 17, 32, 100, 256, 2000)
WIDTHS = (1, 4)
TINY = Sizes(
    hidden=256,
    experts=12,
    routed=8,
    top_k=3,
    heads=2,
    split_tokens=16,
    q_lora=128,
    kv_lora=128,
    nope=32,
    rope=16,
    values=24,
    orders=(2, 2, 3, 3),
    eos=2,
    windows=WIDTHS,
    columns=32,
    row_format="fp8",
    fp8_inputs=True,
    projections=(),
)
# Other n-gram rows, so that one of the sizes has not compiled the other's variants.
FP8_KV = dataclasses.replace(TINY, fp8_kv=True, split_tokens=256, columns=64)


@pytest.fixture(params=["sm_90", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        yield "cuda"
    else:
        with compile_only(arch=90):
            yield "cpu"


def serve(device: str, sizes: Sizes) -> None:
    """Calls every operation as the model does: with batch sizes around those that Triton tells
    apart, and with tensors that start anywhere in another one."""
    for batch in BATCHES:
        route(device, batch, sizes)
        route_tokens(device, batch, sizes)
        add_identity(device, batch, sizes)
        prepare_attention(device, batch, sizes)
        attend(device, batch, sizes)
        finalize(device, batch, sizes)
        expand(device, batch, sizes)
        store(device, batch, sizes)
        feed(device, batch, sizes)
    for shape in sizes.projections:
        project(device, shape)


def project(device: str, shape: linear_workloads.Shape) -> None:
    """Every number of tokens that takes the kernel, as whole tensors and as rows of wider ones."""
    x, weight = linear_workloads.make_inputs(34, shape.rows, 64, seed=0, device=device)
    x, weight = x.repeat(1, shape.columns // 64), weight.repeat(1, shape.columns // 64)
    wide = torch.cat((x, x), dim=1)[:, shape.columns :]
    op = {"linear": small_linear.linear, "swiglu_linear": small_linear.swiglu_linear}[shape.op]
    for tokens in range(1, 33):
        if small_linear.is_faster(shape.op, weight, tokens):
            for rows in (x[:tokens], x[2 : 2 + tokens], wide[:tokens]):
                op(rows, weight)


def route(device: str, batch: int, sizes: Sizes) -> None:
    logits, bias = router_workloads.make_inputs(
        batch + 1, seed=0, device=device, experts=sizes.experts
    )
    slots = torch.arange(batch + 1, device=device)
    options = moe_router.Options(sizes.top_k, sizes.routed, scale=6.0, held=(1, 2))
    for rows, known in ((logits[1:], slots[1:]), (logits[:-1], slots[:-1]), (logits[1:], None)):
        moe_router.route(rows, bias, options._replace(slots=known))


def route_tokens(device: str, batch: int, sizes: Sizes) -> None:
    x, weight, bias = router_workloads.make_tokens(
        batch + 1, seed=0, device=device, experts=sizes.experts, hidden=sizes.hidden
    )
    slots = torch.arange(batch + 1, device=device)
    options = moe_router.Options(sizes.top_k, sizes.routed, scale=6.0, held=(1, 2))
    for rows, known in ((x[1:], slots[1:]), (x[:-1], slots[:-1]), (x[1:], None)):
        moe_router.route_tokens(rows, weight, bias, options._replace(slots=known))


def add_identity(device: str, batch: int, sizes: Sizes) -> None:
    out, x, weight = sum_workloads.make_identity_inputs(
        batch + 1, seed=0, device=device, dtype=sizes.dtype, width=sizes.hidden
    )
    wide = torch.cat((x, x), dim=1)[:, : sizes.hidden]
    for first in (0, 1):
        rows = slice(first, first + batch)
        expert_sum.add_identity_(out[rows], x[rows], weight[rows])
    expert_sum.add_identity_(out, wide, weight)
    expert_sum.add_identity_(out[:1].as_strided((1, sizes.hidden), (1, 1)), x[:1], weight)


def prepare_attention(device: str, batch: int, sizes: Sizes) -> None:
    """Head counts of different divisors; positions and slots from the middle of a buffer."""
    widths = {name: getattr(sizes, name) for name in ("q_lora", "kv_lora", "nope", "rope")}
    for heads in (1, 4, 5):
        inputs = prologue_workloads.make_inputs(
            batch + 1,
            seed=0,
            device=device,
            heads=heads,
            context=8,
            fp8_rows=sizes.fp8_kv,
            **widths,
        )
        quantised = (mla_prologue.norm_quantise_and_store,) if sizes.fp8_inputs else ()
        for store in (mla_prologue.norm_and_store, *quantised):
            store(
                inputs.qkv[1:],
                inputs.q_weight,
                inputs.kv_weight,
                eps=lite.EPS,
                positions=inputs.positions[1:],
                cos_sin=inputs.cos_sin,
                slots=inputs.slots[1:],
                kv_buffer=inputs.kv_buffer,
            )
        mla_prologue.absorb_query(
            inputs.q[1:], inputs.w_kc, positions=inputs.positions[1:], cos_sin=inputs.cos_sin
        )


def attend(device: str, batch: int, sizes: Sizes) -> None:
    shape = {"heads": sizes.heads, "rope": sizes.rope}
    w_vc = decode_workloads.make_values(
        seed=0, device=device, heads=sizes.heads, rank=sizes.kv_lora, values=sizes.values
    )
    for width in WIDTHS:
        if sizes.split_tokens is None:
            if not (is_hopper(w_vc) and mla_decode.is_faster(batch, width, sizes.context)):
                continue
        elif batch * width > sizes.split_tokens:
            continue
        inputs = decode_workloads.make_inputs(
            [width] * batch,
            seed=0,
            device=device,
            width=width,
            rank=sizes.kv_lora,
            fp8=sizes.fp8_kv,
            **shape,
        )
        query = torch.cat([inputs.q_nope, inputs.q_pe], dim=-1)
        split = inputs._replace(
            q_nope=query[..., : sizes.kv_lora], q_pe=query[..., sizes.kv_lora :]
        )
        for matrix in (w_vc, None) if sizes.fp8_kv else (w_vc,):
            mla_decode.mla_decode(*split, scale=1.0, width=width, w_vc=matrix)
        if sizes.fp8_inputs and mla_decode.gives_pair(batch * width, sizes.values):
            mla_decode.mla_decode_pair(*split, scale=1.0, width=width, w_vc=w_vc)


def finalize(device: str, batch: int, sizes: Sizes) -> None:
    given = sum_workloads.make_inputs(
        batch + 1, seed=0, device=device, dtype=sizes.dtype, width=sizes.hidden, top_k=sizes.top_k
    )
    for rows in (slice(0, batch), slice(1, batch + 1)):
        routed, ids, x, weight, addend = (value[rows] for value in given)
        for part in ((x, weight), (None, None)):
            for other in (addend, None):
                expert_sum.finalize(routed, ids, *part, other)


def expand(device: str, batch: int, sizes: Sizes) -> None:
    if sizes.fp8_kv:
        widths = {"rank": sizes.kv_lora, "rope": sizes.rope}
        pool, slots = expand_workloads.make_inputs(batch + 1, seed=0, device=device, **widths)
        for some in (slots, slots[1:], slots.int(), slots.int()[1:]):
            kv_expand.expand(pool, some, **widths)


def store(device: str, batch: int, sizes: Sizes) -> None:
    if sizes.fp8_kv:
        widths = {"rank": sizes.kv_lora, "rope": sizes.rope}
        pool, slots, latents, ropes = store_workloads.make_inputs(
            batch + 1, seed=0, device=device, **widths
        )
        for first in (0, 1):
            rows = latents[first:], ropes[first:]
            for some in (slots[first:], slots.int()[first:]):
                kv_store.round_and_store(pool, some, *rows)
                kv_store.round_and_store(pool, some, *(part.contiguous() for part in rows))


def feed(device: str, batch: int, sizes: Sizes) -> None:
    params = ngram.make_hash_params(
        vocab_size=lite.VOCAB,
        rows=(8,) * len(sizes.orders),
        orders=sizes.orders,
        eos=tuple(range(2, 2 + sizes.eos)),
        device=device,
    )
    kind = "bf16" if sizes.row_format == "plain" else sizes.row_format
    rows = ngram_workloads.make_rows(8, sizes.columns, kind, seed=0, device=device)
    for width in sizes.windows:
        inputs = ngram_workloads.make_inputs([width] * batch, seed=0, device=device)
        ngram.window_rows(inputs.window, inputs.ring, params, rows)
    lengths = [1 + i % 3 for i in range(batch)]
    inputs = ngram_workloads.make_inputs(lengths, seed=0, device=device)
    narrow = Prefill(*inputs.window, inputs.starts.int(), inputs.lengths.int())
    for prefill in (inputs.prefill, narrow):
        ngram.extend_rows(prefill, inputs.ring, params, rows)


@pytest.mark.parametrize(
    "sizes",
    [Sizes(windows=WIDTHS), TINY, FP8_KV],
    ids=["lite", "tiny", "fp8_kv"],
)
def test_nothing_is_left_to_compile(device: str, sizes: Sizes) -> None:
    """Red if an op gets a kernel, a dtype or an integer argument whose variants its `warm_up` does
    not cover. The comparison can fail: another window width is compiled."""
    warm_up(device, sizes)
    with compilations() as compiled:
        serve(device, sizes)
    assert compiled == []
    with compilations() as compiled:
        feed(device, 2, dataclasses.replace(sizes, windows=(7,)))
    assert len(compiled) == 1


def test_nothing_is_left_to_compile_for_4_bits(device: str) -> None:
    """With the shape that compiles fastest, `q_b`."""
    shape, group = packed_workloads.LITE[3], packed_workloads.GROUP
    packed_warm_up.warm_up(device, Sizes(packed_group=group, projections=(shape,)))
    weight = packed_workloads.make_weight(shape.rows, shape.columns, seed=0, device=device)
    x = packed_workloads.make_x(6, shape.columns, seed=0, device=device)
    faster = [n for n in (1, 2, 3, 4) if packed_linear.is_faster(shape.op, weight, n)]
    assert faster
    with compilations() as compiled:
        for n in faster:
            for rows in (x[:n], x[2 : 2 + n]):
                packed_linear.linear(rows, weight)
    assert compiled == []


def test_widths_that_a_kernel_does_not_take_stop_no_server(device: str) -> None:
    warm_up(device, dataclasses.replace(TINY, rope=8))


def test_fp8_rows_need_the_largest_step(device: str) -> None:
    with pytest.raises(ValueError, match="Give the tokens of the largest"):
        warm_up(device, dataclasses.replace(TINY, fp8_kv=True, split_tokens=None))


def test_a_second_warm_up_costs_nothing(device: str) -> None:
    warm_up(device)
    assert warm_up(device) == 0


def test_every_op_is_warmed_up() -> None:
    """Red if an op with a Triton kernel is not in the list."""
    package = Path(longcat_kernels.__path__[0])
    assert {file.parent.name for file in package.glob("*/_triton.py")} == set(OPS)


def test_the_command_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--window", "1", "5"])
    said = capsys.readouterr().out
    assert "kernel variants in" in said
    assert torch.cuda.is_available() or "(no GPU here: compiled for sm_90)" in said


def test_the_command_compiles_for_the_kind_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if --int4 stops reaching the sizes: the cache of an image then lacks kernels."""
    seen: list[Sizes] = []
    monkeypatch.setattr("longcat_kernels.warm_up.warm_up", lambda _, sizes: seen.append(sizes) or 0)
    main(["--int4"])
    main([])
    assert [sizes.packed_group for sizes in seen] == [packed_workloads.GROUP, None]
