"""The pool of FP8 rows, built as SGLang builds it, on a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longcat_kernels import kv_rows
from sglang_longcat.hooks import kv_cache_dtype, kv_pool_class, kv_row_width
from sglang_longcat.kv_cache.pool import Fp8RowPool, rows_of

RANK, ROPE, LAYERS = 512, 64, 3
LAYER = SimpleNamespace(layer_id=1)


def make(page_size: int = 1) -> Fp8RowPool:
    return Fp8RowPool(
        16,
        page_size=page_size,
        dtype=torch.bfloat16,
        kv_lora_rank=RANK,
        qk_rope_head_dim=ROPE,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
        start_layer=0,
        end_layer=LAYERS,
    )


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Fp8RowPool:
    parallel = SimpleNamespace(attn_dcp_size=1, attn_dcp_rank=0, dcp_enabled=False)
    monkeypatch.setattr("sglang.srt.mem_cache.memory_pool.get_parallel", lambda: parallel)
    return make()


def values(tokens: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 1, RANK + ROPE, generator=draw).bfloat16()


@pytest.mark.parametrize("whole", [True, False], ids=["one row", "two parts"])
def test_what_is_stored_comes_back_rounded(pool: Fp8RowPool, whole: bool) -> None:
    """Red if one of SGLang's two ways to write stores other rows, or into other slots or layers."""
    slots, rows = torch.tensor([7, 3, 12]), values(3)
    want = kv_rows.rounded(rows, RANK)
    if whole:
        pool.set_kv_buffer(LAYER, slots, rows, None)
    else:
        pool.set_mla_kv_buffer(LAYER, slots, *rows.split((RANK, ROPE), dim=-1))
    latents, ropes = pool.get_mla_kv_buffer(LAYER, slots.flip(0), torch.float32)
    assert torch.equal(torch.cat((latents, ropes), -1), want.flip(0).float())
    assert latents.is_contiguous()
    written = [layer.any(dim=-1).sum().item() for layer in pool.kv_buffer]
    assert written == [0, 3, 0]


def test_a_prefill_sees_its_own_latents_as_later_steps_do(pool: Fp8RowPool) -> None:
    """Red if they keep more digits than the rows, or a token without a real slot gets the values of
    slot 0. SGLang's prefill makes K and V of the tensor that it stores."""
    latents, ropes = values(4).split((RANK, ROPE), dim=-1)
    mine, slots = latents.squeeze(1).clone(), torch.tensor([9, 0, 4, 0])
    pool.set_mla_kv_buffer(LAYER, slots, mine.unsqueeze(1), ropes)
    assert torch.equal(mine[::2], pool.get_mla_kv_buffer(LAYER, slots[::2])[0][:, 0])
    assert torch.equal(mine, kv_rows.rounded(torch.cat((latents, ropes), -1), RANK)[:, 0, :RANK])
    assert not torch.equal(mine, latents[:, 0])


def test_rows_without_a_slot_are_left_out(pool: Fp8RowPool) -> None:
    """Attention DP pads the rows of a batch, and not its slots."""
    rows = values(4)
    pool.set_mla_kv_buffer(LAYER, torch.tensor([5]), *rows.split((RANK, ROPE), dim=-1))
    assert pool.rows(1).any(dim=-1).nonzero()[:, 0].tolist() == [5]
    assert torch.equal(rows[1:], values(4)[1:])


def test_rows_survive_a_move_and_the_host(pool: Fp8RowPool) -> None:
    """Accepted drafts are moved; a decode worker's retraction goes over the host."""
    slots, rows = torch.tensor([1, 2]), values(2)
    pool.set_kv_buffer(LAYER, slots, rows.clone(), None)
    pool.move_kv_cache(torch.tensor([9, 10]), slots)
    kept = pool.get_cpu_copy(torch.tensor([9, 10]))
    pool.load_cpu_copy(kept, torch.tensor([14, 15]))
    latents, ropes = pool.get_mla_kv_buffer(LAYER, torch.tensor([14, 15]))
    assert torch.equal(torch.cat((latents, ropes), -1), kv_rows.rounded(rows, RANK))


def test_nobody_gets_bytes_for_values(pool: Fp8RowPool) -> None:
    for read in (pool.get_key_buffer, pool.get_value_buffer, pool.get_kv_buffer):
        with pytest.raises(RuntimeError, match="layer 1 of the KV cache has FP8 rows"):
            read(1)
    assert rows_of(pool, 1).dtype == torch.uint8


def serve(monkeypatch: pytest.MonkeyPatch, *, ours: bool = True, flag: str = "fp8_e4m3") -> None:
    model = SimpleNamespace(kv_cache_dtype=flag)
    monkeypatch.setattr("sglang.srt.runtime_context.get_model", lambda: model)
    monkeypatch.setattr("sglang_longcat.host.hf_config.is_serving_us", lambda: ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("page_size", [1, 4])
def test_sglang_counts_the_bytes_that_a_row_takes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, page_size: int
) -> None:
    """Red if the number of tokens is computed from other rows than the pool allocates."""
    serve(monkeypatch)
    config = SimpleNamespace(kv_lora_rank=RANK, qk_rope_head_dim=ROPE)
    width = kv_row_width.apply(0, model_config=config, kv_cache_dtype=dtype)
    assert width is not None
    row = width * dtype.itemsize
    assert row == 656
    pool = make(page_size)
    assert pool.get_kv_size_bytes() == LAYERS * (16 + page_size) * row
    assert pool.get_contiguous_buf_infos()[2] == [row * page_size] * LAYERS


def test_the_hooks_give_the_pool_to_our_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if another model, or another type of cache, gets FP8 rows; or another kind of pool."""
    config: Any = SimpleNamespace(kv_lora_rank=RANK, qk_rope_head_dim=ROPE)
    for ours, flag, taken in (
        (True, "fp8_e4m3", True),
        (False, "fp8_e4m3", False),
        (True, "auto", False),
        (True, "bfloat16", False),
    ):
        serve(monkeypatch, ours=ours, flag=flag)
        dtype = kv_cache_dtype.apply(
            (None, torch.float8_e4m3fn), model_dtype=torch.bfloat16, is_draft_worker=False
        )
        pool = kv_pool_class.apply(object, None, kind="mla", default=object)
        width = kv_row_width.apply(576, model_config=config, kv_cache_dtype=torch.bfloat16)
        want = ((None, torch.bfloat16), Fp8RowPool, 328) if taken else (None, None, None)
        assert (dtype, pool, width) == want
        assert kv_pool_class.apply(object, None, kind="mha", default=object) is None
