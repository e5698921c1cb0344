"""Expanded rows are `kv_rows.unpack`'s, bit for bit."""

from __future__ import annotations

import pytest
import torch

from longcat_kernels import kv_rows, lite
from longcat_kernels.kv_expand import expand, workloads
from tests.kernels.interpreter import INTERPRETED, round_to_bf16

SMALL = {"rank": 32, "rope": 16}
LITE = {"rank": lite.KV_LORA, "rope": lite.ROPE}


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        round_to_bf16(monkeypatch)


def check(pool: torch.Tensor, slots: torch.Tensor, **widths: int) -> None:
    got = expand(pool, slots, **widths)
    assert torch.equal(got, kv_rows.unpack(pool[slots.long(), 0], widths["rank"]))


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 130])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_rows_of_any_slots(device: str, tokens: int, index: torch.dtype) -> None:
    """Red if a tail, a quarter's scale or the rope part is taken from another row."""
    pool, slots = workloads.make_inputs(tokens, seed=tokens, device=device, **SMALL)
    check(pool, slots.to(index), **SMALL)


def test_the_models_sizes(device: str) -> None:
    pool, slots = workloads.make_inputs(11, seed=1, device=device)
    check(pool, slots, **LITE)


def test_a_slot_may_occur_twice(device: str) -> None:
    """Requests of a batch share a prefix."""
    pool, slots = workloads.make_inputs(9, seed=2, device=device, **SMALL)
    check(pool, torch.cat((slots, slots)), **SMALL)


def test_rows_go_into_a_given_buffer_and_nowhere_else(device: str) -> None:
    pool, slots = workloads.make_inputs(9, seed=3, device=device, **SMALL)
    buffer = torch.full((12, 48), 7.0, device=pool.device).bfloat16()
    out = expand(pool, slots, out=buffer[:9], **SMALL)
    assert out.data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer[:9], kv_rows.unpack(pool[slots, 0], 32))
    assert (buffer[9:] == 7.0).all()


def test_what_cannot_be_expanded_is_refused(device: str) -> None:
    pool, slots = workloads.make_inputs(3, seed=4, device=device, **SMALL)
    with pytest.raises(ValueError, match="expected FP8 rows"):
        expand(pool.bfloat16(), slots, **SMALL)
    with pytest.raises(ValueError, match=r"expected \[rows, 656\]"):
        expand(pool, slots, **LITE)
    with pytest.raises(ValueError, match=r"expected bf16 \(3, 48\), contiguous"):
        expand(pool, slots, out=torch.empty(3, 96, dtype=torch.bfloat16)[:, :48], **SMALL)


@pytest.mark.gpu
def test_a_captured_expansion_follows_its_slots() -> None:
    pool, slots = workloads.make_inputs(4096, seed=5, device="cuda")
    expand(pool, slots, **LITE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = expand(pool, slots, **LITE)
    for seed in range(1, 4):
        fresh = workloads.make_inputs(4096, seed=seed, device="cuda")
        pool.copy_(fresh[0])
        slots.copy_(fresh[1])
        graph.replay()
        assert torch.equal(out, kv_rows.unpack(pool[slots, 0], lite.KV_LORA))
