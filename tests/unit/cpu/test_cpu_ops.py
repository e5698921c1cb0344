"""CPU leaf computations against a naive loop: attention plans and routed experts.

Also the two guards around them: the stand-in for sgl_kernel and the environment check.
"""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sglang_longcat.cpu import attention
from sglang_longcat.cpu.environment import CPU_ENV, require, tp_env
from sglang_longcat.cpu.experts import routed_experts

HEADS, LATENT, ROPE, SCALE = 4, 8, 4, 0.3
POOL = 640
LONG = attention._BLOCK + 3  # one query block and a tail

# (cached prefix, new tokens) per request of one batch.
BATCHES = {
    "one token": [(0, 1)],
    "first chunks": [(0, 5), (0, 1), (0, 17)],
    "radix hit and later chunk": [(7, 3), (2, LONG)],
    "mixed with decode": [(0, LONG), (33, 1), (5, 1), (16, 16)],
}


def _tables(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Scattered slots for each request. Rows are used out of order, and slot 0 is SGLang's
    dummy."""
    shuffled = (torch.randperm(POOL - 1) + 1).split([*lengths, POOL - 1 - sum(lengths)])
    table = torch.zeros(2 * len(lengths), max(lengths) + 5, dtype=torch.int32)
    requests = torch.arange(2 * len(lengths) - 1, -1, -2)
    for row, slots in zip(requests.tolist(), shuffled[:-1], strict=True):
        table[row, : len(slots)] = slots.int()
    return table, requests


def _naive(
    q: Tensor,
    kv: Tensor,
    table: Tensor,
    requests: Tensor,
    prefix_lens: list[int],
    extend_lens: list[int],
) -> Tensor:
    """One query and one head at a time, in float64."""
    out, row = torch.zeros(len(q), HEADS, LATENT, dtype=torch.float64), 0
    for request, prefix, new in zip(requests.tolist(), prefix_lens, extend_lens, strict=True):
        for i in range(new):
            seen = kv[table[request, : prefix + i + 1].long()].double()
            for head in range(HEADS):
                weights = (seen @ q[row, head].double() * SCALE).softmax(0)
                out[row, head] = weights @ seen[:, :LATENT]
            row += 1
    return out


def _inputs(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    kv = torch.randn(POOL, LATENT + ROPE).to(dtype)
    kv[0] = float("nan")  # no query may read the dummy slot
    return torch.randn(tokens, HEADS, LATENT + ROPE).to(dtype), kv


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_extend_equals_naive(batch: list[tuple[int, int]], dtype: torch.dtype, atol: float) -> None:
    torch.manual_seed(0)
    prefix_lens, extend_lens = (list(column) for column in zip(*batch, strict=True))
    table, requests = _tables([p + n for p, n in batch])
    q, kv = _inputs(sum(extend_lens), dtype)
    plan = attention.plan_extend(table, requests, prefix_lens, extend_lens)
    got = attention.attend(plan, q, kv, v_width=LATENT, scale=SCALE)
    want = _naive(q, kv, table, requests, prefix_lens, extend_lens)
    torch.testing.assert_close(got, want.to(dtype), atol=atol, rtol=0)


@pytest.mark.parametrize("lengths", [[1], [1, 40, 7], [9, 9]])
def test_decode_equals_naive(lengths: list[int]) -> None:
    """Unequal lengths: padding must neither be seen nor multiply the dummy slot's NaN."""
    torch.manual_seed(0)
    table, requests = _tables(lengths)
    q, kv = _inputs(len(lengths), torch.float32)
    plan = attention.plan_decode(table, requests, torch.tensor(lengths))
    got = attention.attend(plan, q, kv, v_width=LATENT, scale=SCALE)
    want = _naive(q, kv, table, requests, [n - 1 for n in lengths], [1] * len(lengths))
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix_lens", [[0], [1, 40, 7], [9, 9]])
@pytest.mark.parametrize("width", [1, 4])
def test_window_equals_naive(prefix_lens: list[int], width: int) -> None:
    """Speculation: `width` tokens after unequal prefixes; each token sees those before it."""
    torch.manual_seed(0)
    table, requests = _tables([n + width for n in prefix_lens])
    q, kv = _inputs(width * len(prefix_lens), torch.float32)
    plan = attention.plan_window(table, requests, torch.tensor(prefix_lens), width)
    got = attention.attend(plan, q, kv, v_width=LATENT, scale=SCALE)
    want = _naive(q, kv, table, requests, prefix_lens, [width] * len(prefix_lens))
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=0)


def test_scores_are_computed_in_fp32() -> None:
    """Two keys that bf16 products cannot tell apart must still get different weights."""
    q = torch.full((1, 1, 256), 1.0, dtype=torch.bfloat16)
    kv = torch.full((2, 256), 1.0, dtype=torch.bfloat16)
    kv[1, 0] = 1.25  # scores 256 and 256.25; bf16 spacing at 256 is 2
    plan = attention.plan_extend(torch.tensor([[0, 1]]), torch.tensor([0]), [1], [1])
    got = attention.attend(plan, q, kv, v_width=1, scale=4.0)
    weight = torch.tensor([0.0, 1.0]).softmax(0)[1]
    assert got.item() == pytest.approx(1 + 0.25 * weight.item(), abs=2**-8)


def _naive_experts(x: Tensor, w13: Tensor, w2: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros_like(x, dtype=torch.float64)
    for token in range(len(x)):
        for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            if expert >= 0:
                gate, up = (w13[expert].double() @ x[token].double()).chunk(2)
                out[token] += weight * (w2[expert].double() @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("low", [-1, 0], ids=["absent ids", "all present"])
def test_experts_equal_naive(tokens: int, low: int) -> None:
    """Ids repeat within a token, and some experts get no token: a scatter would count both
    wrong."""
    torch.manual_seed(1)
    x, ids = torch.randn(tokens, 6), torch.randint(low, 3, (tokens, 5), dtype=torch.int32)
    w13, w2, weights = torch.randn(4, 10, 6), torch.randn(4, 6, 5), torch.rand(tokens, 5)
    got = routed_experts(x, w13, w2, ids, weights)
    want = _naive_experts(x, w13, w2, ids, weights)
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-5)


def test_experts_without_any_id_add_nothing_even_to_nan_weights() -> None:
    """An absent expert is skipped, not multiplied by zero: its weights are never read."""
    w13, w2 = torch.full((1, 4, 3), float("nan")), torch.full((1, 3, 2), float("nan"))
    ids = torch.full((2, 3), -1)
    got = routed_experts(torch.randn(2, 3), w13, w2, ids, torch.rand(2, 3))
    assert torch.equal(got, torch.zeros(2, 3))


def test_experts_reject_an_id_beyond_the_last_expert() -> None:
    with pytest.raises(IndexError):
        routed_experts(
            torch.randn(1, 3),
            torch.randn(2, 4, 3),
            torch.randn(2, 3, 2),
            torch.tensor([[2]]),
            torch.ones(1, 1),
        )


def test_common_ops_never_hides_a_broken_cuda_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.delitem(sys.modules, "common_ops", raising=False)
    with pytest.raises(ImportError, match="SGLANG_USE_CPU_ENGINE=1"):
        importlib.import_module("common_ops")
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    importlib.import_module("common_ops")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*CPU_ENV, *tp_env(2)):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("device", [["--device", "cpu"], ["--device=cpu"]])
def test_require_names_variables_and_command(bare: pytest.MonkeyPatch, device: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        require(["serve.py", "--model-path", "my model", *device])
    text = str(stop.value)
    assert "needs SGLANG_USE_CPU_ENGINE in" in text
    assert "SGLANG_USE_CPU_ENGINE=1 " in text
    assert "'my model'" in text
    assert "OMP_THREADS_BIND" not in text


@pytest.mark.parametrize("flag", [["--tp", "2"], ["--tp-size=2"]])
def test_require_asks_for_what_two_ranks_need(bare: pytest.MonkeyPatch, flag: list[str]) -> None:
    argv = ["serve.py", "--device", "cpu", *flag]
    bare.setenv("SGLANG_USE_CPU_ENGINE", "1")
    with pytest.raises(SystemExit, match="needs SGLANG_CPU_OMP_THREADS_BIND, SGLANG_NCCL_SO_PATH"):
        require(argv)
    for name, value in tp_env(2).items():
        bare.setenv(name, value)
    require(argv)


@pytest.mark.parametrize("argv", [["serve.py"], ["serve.py", "--device", "cuda", "--tp", "2"]])
def test_require_leaves_other_devices_alone(bare: pytest.MonkeyPatch, argv: list[str]) -> None:
    require(argv)
