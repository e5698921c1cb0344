"""Stored rows are `kv_rows.pack`'s, bit for bit, and no other row changes. The latents become what
the rows stand for."""

from __future__ import annotations

import pytest
import torch

from longcat_kernels import kv_rows, lite
from longcat_kernels.kv_store import round_and_store, workloads
from tests.kernels.interpreter import INTERPRETED, round_to_bf16

SMALL = {"rank": 32, "rope": 16}
LITE = {"rank": lite.KV_LORA, "rope": lite.ROPE}


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        round_to_bf16(monkeypatch)


def check(
    pool: torch.Tensor, slots: torch.Tensor, latents: torch.Tensor, ropes: torch.Tensor
) -> None:
    want, kept = pool.clone(), slots.long()[slots > 0]
    rows, rank = torch.cat((latents, ropes), -1), latents.shape[1]
    want[kept, 0] = kv_rows.pack(rows, rank)[slots > 0]
    round_and_store(pool, slots, latents, ropes)
    assert torch.equal(pool, want)
    assert torch.equal(torch.cat((latents, ropes), -1), kv_rows.rounded(rows, rank))


@pytest.mark.parametrize("tokens", [0, 1, 7, 130])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_rows_of_any_slots(device: str, tokens: int, index: torch.dtype) -> None:
    """Red if a part is written into another row, or a scale is another quarter's."""
    pool, slots, *rows = workloads.make_inputs(tokens, seed=tokens, device=device, **SMALL)
    check(pool, slots.to(index), *rows)


def test_the_models_sizes(device: str) -> None:
    check(*workloads.make_inputs(11, seed=1, device=device))


def test_rows_that_only_fill_a_batch_are_not_written(device: str) -> None:
    pool, slots, *rows = workloads.make_inputs(6, seed=2, device=device, **SMALL)
    slots[3:] = 0
    check(pool, slots, *rows)


def test_rounded_values_round_to_themselves(device: str) -> None:
    """Red if a chunk that is computed again, from rounded values, would store other rows; the
    kernel relies on it, too."""
    pool, slots, *rows = workloads.make_inputs(9, seed=6, device=device)
    round_and_store(pool, slots, *rows)
    before = pool.clone(), rows[0].clone()
    round_and_store(pool, slots, *rows)
    assert torch.equal(pool, before[0])
    assert torch.equal(rows[0], before[1])


def test_values_that_no_scale_can_hold(device: str) -> None:
    """Zeros, and a single value as large as bf16 has them."""
    pool, slots, latents, ropes = workloads.make_inputs(2, seed=3, device=device, **SMALL)
    latents[0] = 0.0
    latents[1, 5] = 3e38
    check(pool, slots, latents, ropes)


def test_what_cannot_be_stored_is_refused(device: str) -> None:
    pool, slots, latents, ropes = workloads.make_inputs(3, seed=4, device=device, **SMALL)
    with pytest.raises(ValueError, match="expected FP8 rows"):
        round_and_store(pool.bfloat16(), slots, latents, ropes)
    with pytest.raises(ValueError, match=r"expected \[rows, 64\]"):
        round_and_store(pool, slots, latents[:, :16], ropes)
    with pytest.raises(ValueError, match="2 slots for 3 latents"):
        round_and_store(pool, slots[:2], latents, ropes)


@pytest.mark.gpu
def test_other_types_are_refused_on_a_gpu() -> None:
    pool, slots, latents, ropes = workloads.make_inputs(3, seed=5, device="cuda")
    with pytest.raises(ValueError, match="expected bf16"):
        round_and_store(pool, slots, latents.float(), ropes.float())
