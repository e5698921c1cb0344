"""What the fa3 backend of FP8 rows decides, on a CPU: which path a step takes, which keys it sees.

Its kernels run here as their references. SGLang's constructor needs a GPU, so it is left out.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from longcat_kernels import kv_rows
from sglang_longcat.kv_cache.fa3 import WIDEST, Fp8RowBackend

HEADS, RANK, ROPE = 2, 32, 16
LAYER = SimpleNamespace(
    layer_id=0,
    tp_q_head_num=HEADS,
    v_head_dim=RANK,
    head_dim=RANK + ROPE,
    scaling=0.1,
    is_cross_attention=False,
)
LENGTHS = (9, 6)  # keys of two requests, their windows included


class Pool:
    """One layer of rows, and what was stored."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.values = torch.randn(20, 1, RANK + ROPE, generator=draw).bfloat16()
        self.stored: list[torch.Tensor] = []

    def rows(self, layer_id: int) -> torch.Tensor:
        return kv_rows.pack(self.values, RANK)

    def set_mla_kv_buffer(self, layer: Any, loc: Any, *parts: torch.Tensor) -> None:
        self.stored.append(torch.cat(parts, dim=-1))


@pytest.fixture
def backend() -> Fp8RowBackend:
    made = Fp8RowBackend.__new__(Fp8RowBackend)
    made.token_to_kv_pool = Pool()
    made.req_to_token = torch.randperm(20, generator=torch.Generator().manual_seed(1)).int()
    made.req_to_token = made.req_to_token.repeat(3, 1)[:, :10]
    made.keys_after = torch.arange(WIDEST, 0, -1)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    made.forward_metadata = SimpleNamespace(cache_seqlens_int32=lengths, max_seq_len_q=1)
    return made


def batch(mode: ForwardMode, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(
        forward_mode=mode,
        req_pool_indices=torch.tensor([2, 0]),
        out_cache_loc=torch.zeros(2, dtype=torch.int64),
        out_cache_loc_is_physical=False,
        attn_attend_prefix_cache=None,
        **fields,
    )


def expected(backend: Any, query: torch.Tensor, width: int) -> torch.Tensor:
    """Token by token, over the rounded rows."""
    values = kv_rows.rounded(backend.token_to_kv_pool.values[:, 0], RANK).float()
    out = []
    for t, q in enumerate(query.float()):
        request, last = (2, 0)[t // width], LENGTHS[t // width] - width + t % width
        keys = values[backend.req_to_token[request, : last + 1].long()]
        out.append(((q @ keys.t()) * LAYER.scaling).softmax(-1) @ keys[:, :RANK])
    return torch.stack(out).flatten(1)


@pytest.mark.parametrize("split", [True, False], ids=["two parts", "side by side"])
@pytest.mark.parametrize(
    ("mode", "width"),
    [
        (ForwardMode.DECODE, 1),
        (ForwardMode.TARGET_VERIFY, 3),
        (ForwardMode.DRAFT_EXTEND_V2, 4),
    ],
)
def test_windows_see_the_keys_that_sglang_counts(
    backend: Fp8RowBackend, mode: ForwardMode, width: int, split: bool
) -> None:
    """Red if a token of a window sees one key more or less, or another request's."""
    backend.forward_metadata.max_seq_len_q = width
    query = torch.randn(2 * width, HEADS, RANK + ROPE).bfloat16()
    q, rope = query.split((RANK, ROPE), dim=-1) if split else (query, None)
    kv = torch.randn(2 * width, 1, RANK + ROPE).bfloat16().split((RANK, ROPE), dim=-1)
    run = backend.forward_decode if mode is ForwardMode.DECODE else backend.forward_extend
    k = kv[0] if split else None
    out = run(q, k, k, LAYER, batch(mode), q_rope=rope, k_rope=kv[1], save_kv_cache=split)
    torch.testing.assert_close(out.float(), expected(backend, query, width), rtol=0.02, atol=0.02)
    assert len(backend.token_to_kv_pool.stored) == split
    if split:
        assert torch.equal(backend.token_to_kv_pool.stored[0], torch.cat(kv, dim=-1))


def test_rows_that_fill_up_a_batch(backend: Fp8RowBackend) -> None:
    """Red if the window's width is guessed from a padded batch, or a request without keys breaks a
    step: of 8 rows 6 are windows of 3, and the second request has one key."""
    backend.forward_metadata.max_seq_len_q = 3
    backend.forward_metadata.cache_seqlens_int32[1] = 1
    query = torch.randn(8, HEADS, RANK + ROPE).bfloat16()
    out = backend.forward_extend(query, None, None, LAYER, batch(ForwardMode.TARGET_VERIFY))
    first = expected(backend, query[:3], 3)
    torch.testing.assert_close(out[:3].float(), first, rtol=0.02, atol=0.02)
    assert out.shape == (8, HEADS * RANK)
    assert out.isfinite().all()
    assert not out[6:].any()


def test_prefill_is_sglangs_unless_it_absorbs(
    backend: Fp8RowBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if an absorbed prefill reaches SGLang's code, which converts the whole pool."""
    monkeypatch.setattr(FlashAttentionBackend, "forward_extend", lambda *_, **__: "SGLang's")
    q = torch.zeros(2, HEADS, RANK)
    chunk = batch(ForwardMode.EXTEND)
    with pytest.raises(RuntimeError, match="an absorbed prefill would read the KV cache"):
        backend.forward_extend(q, None, None, LAYER, chunk)
    for attends in (True, False):
        chunk.attn_attend_prefix_cache = attends
        assert backend.forward_extend(q, q, q, LAYER, chunk, save_kv_cache=False) == "SGLang's"
