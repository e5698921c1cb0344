"""The layout of FP8 rows of the KV pool."""

from __future__ import annotations

import pytest
import torch

from longcat_kernels import kv_rows, lite

RANK, ROPE = lite.KV_LORA, lite.ROPE


def rows(count: int = 3, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, RANK + ROPE, generator=random).bfloat16()


def test_the_layout_is_written_down() -> None:
    """Red if a part moves: FlashMLA's sparse kernels and saved caches read these bytes."""
    latent = torch.zeros(1, RANK + ROPE, dtype=torch.bfloat16)
    latent[0, [0, 128, 256, 384]] = torch.tensor([448.0, 896.0, 224.0, -1.0]).bfloat16()
    latent[0, [1, RANK]] = 1.0
    stored = kv_rows.pack(latent, RANK)[0]
    assert stored.shape == (656,)
    assert [int(stored[i]) for i in (0, 1, 2, 128, 256, 384)] == [126, 56, 0, 126, 126, 254]
    scales = stored[512:528].view(torch.float32)
    assert scales.tolist() == pytest.approx([1.0, 2.0, 0.5, 1 / 448])
    assert stored[528:530].view(torch.bfloat16).item() == 1.0
    assert not stored[530:].any()


def test_rows_come_back_within_the_rounding_of_fp8() -> None:
    """Half of what 3 bits of mantissa tell apart, or of the smallest number; rope exactly."""
    given = rows() * torch.logspace(-6, 6, 3)[:, None].bfloat16()
    back = kv_rows.unpack(kv_rows.pack(given, RANK), RANK)
    assert torch.equal(back[:, RANK:], given[:, RANK:])
    exact = given[:, :RANK].float()
    scales = exact.unflatten(1, (4, -1)).abs().amax(dim=2) / 448
    bound = 2.0**-4 * exact.abs() + scales.repeat_interleave(128, dim=1) * 2.0**-10
    bound += 2.0**-8 * exact.abs()  # bf16's rounding of the product
    assert ((back[:, :RANK].float() - exact).abs() <= bound).all()


def test_packing_again_loses_nothing() -> None:
    """Red if a row that moves through bf16, as in a cached prefix, changes each time."""
    once = kv_rows.unpack(kv_rows.pack(rows(64), RANK), RANK)
    again = kv_rows.unpack(kv_rows.pack(once, RANK), RANK)
    close = (once - again).abs() <= 2.0**-7 * once.abs()
    assert close.all()


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(2, RANK + ROPE, dtype=torch.bfloat16)
    assert not kv_rows.unpack(kv_rows.pack(zeros, RANK), RANK).any()


def test_parts_are_views() -> None:
    """Red if kernels would read another place than `pack` wrote, in SGLang's three dimensions."""
    pool = kv_rows.pack(rows()[:, None], RANK)
    latents, ropes, scales = kv_rows.parts(pool, RANK, ROPE)
    values = latents.float() * scales.repeat_interleave(RANK // 4, dim=1)
    assert torch.equal(torch.cat((values.bfloat16(), ropes), 1), kv_rows.unpack(pool, RANK)[:, 0])
    ropes.zero_()
    assert not pool[..., 528:].any()
    assert kv_rows.parts(pool, RANK, ROPE).stride == 656 // 16


def test_plain_rows_have_parts_too() -> None:
    latents, ropes, _ = parts = kv_rows.parts(rows(), RANK, ROPE)
    assert (latents.shape, ropes.shape, parts.stride) == ((3, 512), (3, 64), 576)


def test_what_kernels_cannot_read_is_refused() -> None:
    pool = torch.zeros(3, 656, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"expected \[rows, 656\]"):
        kv_rows.parts(pool[:, 1:], RANK, ROPE)
    with pytest.raises(ValueError, match="expected multiples of 16"):
        kv_rows.parts(torch.zeros(3, 660, dtype=torch.uint8)[:, 4:], RANK, ROPE)
    with pytest.raises(ValueError, match="a power of two from 16 on"):
        kv_rows.row_width(96, ROPE, fp8=True)
