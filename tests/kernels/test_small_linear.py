"""Both projections against float64; every configuration of the table, on shapes with tails."""

from __future__ import annotations

import os

import pytest
import torch

from longcat_kernels.small_linear import configs, is_faster, linear, swiglu_linear, workloads
from longcat_kernels.small_linear.configs import Config, Op

OPS = {"linear": linear, "swiglu_linear": swiglu_linear}
SHAPES = [*workloads.LITE, *workloads.LITE_TP2]
TUNED = sorted(
    {
        c
        for s in SHAPES
        for t in workloads.BATCHES
        if (c := configs.find(s.op, s.rows, s.columns, t))
    }
)
OTHERS = [
    Config("gemv", 1, 32, 1, 1, 1),
    Config("gemv", 8, 64, 9, 1, 2),  # ahead of more tiles than there are
    Config("mma", 16, 32, 0, 2, 1),
    Config("mma", 8, 64, 1, 3, 2),
    Config("mma", 32, 64, 3, 3, 4),
]
# Triton's interpreter cuts fp32 off to bf16 where the GPU rounds to nearest.
ULPS = 1.0 if "TRITON_INTERPRET" in os.environ else 0.5


def exact(op: Op, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float64, and how far fp32 sums in any order may be from it."""
    y = x.double() @ weight.double().t()
    noise = x.double().abs() @ weight.double().abs().t() * 2**-22
    if op == "linear":
        return y, noise
    (gate, up), (gate_noise, up_noise) = y.chunk(2, -1), noise.chunk(2, -1)
    # silu' is at most 1.1; fp32's sigmoid is off by a few 2^-24.
    silu = gate * gate.sigmoid()
    return silu * up, 1.1 * gate_noise * up.abs() + silu.abs() * (up_noise + up.abs() * 2**-20)


def check(got: torch.Tensor, op: Op, x: torch.Tensor, weight: torch.Tensor) -> None:
    """One rounding to bf16, whose ulp is at most 2^-7 of the value."""
    wanted, noise = exact(op, x, weight)
    assert got.dtype == torch.bfloat16
    assert got.shape == wanted.shape
    excess = (got.double() - wanted).abs() - wanted.abs() * ULPS * 2**-7 - noise * 1.02 - 1e-30
    assert bool((excess <= 0).all()), f"{float(excess.max()):.2e} too far"


def force(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that are not in the table take `config`."""
    monkeypatch.setattr(
        "longcat_kernels.small_linear.launch.fallback", lambda columns, tokens, fp8: config
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 17, 32])
@pytest.mark.parametrize(("rows", "columns"), [(64, 128), (38, 96), (2, 16), (70, 300), (6, 5)])
def test_values(device: str, op: Op, tokens: int, rows: int, columns: int) -> None:
    """Rows and columns that fill no tile, and fewer than one."""
    x, weight = workloads.make_inputs(tokens, rows, columns, seed=rows, device=device)
    check(OPS[op](x, weight), op, x, weight)


@pytest.mark.parametrize("config", [*TUNED, *OTHERS], ids=lambda c: "-".join(map(str, c)))
@pytest.mark.parametrize("op", OPS)
def test_configurations(
    device: str, op: Op, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a tuner writes a configuration that computes something else. A bit more than two tiles
    of columns, so that the loop and its tail both run."""
    force(config, monkeypatch)
    columns = (config.ahead + 2) * config.block_k + 16
    for tokens in (1,) if config.program == "gemv" else (5, 19):
        x, weight = workloads.make_inputs(
            tokens, 2 * config.block_n + 4, columns, seed=1, device=device
        )
        check(OPS[op](x, weight), op, x, weight)


def test_one_token_may_take_the_mma_program(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(OTHERS[-1], monkeypatch)
    x, weight = workloads.make_inputs(1, 48, 200, seed=2, device=device)
    check(linear(x, weight), "linear", x, weight)


@pytest.mark.parametrize("op", OPS)
def test_no_tokens(device: str, op: Op) -> None:
    x, weight = workloads.make_inputs(0, 64, 32, seed=0, device=device)
    assert OPS[op](x, weight).shape == (0, 64 if op == "linear" else 32)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("first", [0, 3, 16])
def test_rows_of_a_wider_tensor(device: str, tokens: int, first: int) -> None:
    wide, _ = workloads.make_inputs(tokens, 1, 112, seed=3, device=device)
    _, weight = workloads.make_inputs(1, 32, 64, seed=4, device=device)
    x = wide[:, first : first + 64]
    check(linear(x, weight), "linear", x, weight)
    transposed = x.t().contiguous().t()
    assert torch.equal(linear(transposed, weight), linear(x, weight))


def test_values_that_overflow_are_not_hidden(device: str) -> None:
    """A broken activation upstream must stay visible; other tokens must not see it."""
    x, weight = workloads.make_inputs(3, 32, 64, seed=5, device=device)
    x[1, 7] = float("nan")
    got = swiglu_linear(x, weight)
    assert bool(got[1].isnan().all())
    assert bool(got[[0, 2]].isfinite().all())


def test_what_is_not_served_says_so(device: str) -> None:
    x, weight = workloads.make_inputs(33, 33, 64, seed=6, device=device)
    with pytest.raises(ValueError, match="33 tokens: expected at most 32"):
        linear(x, weight)
    with pytest.raises(ValueError, match="33 rows"):
        swiglu_linear(x[:2], weight)
    with pytest.raises(ValueError, match="expected bf16"):
        linear(x[:2].float(), weight)
    with pytest.raises(ValueError, match=r"contiguous torch\.bfloat16 weight"):
        linear(x[:2], torch.cat((weight, weight), 1)[:, :64])
    with pytest.raises(ValueError, match=r"expected \[T, K\]"):
        linear(x[:2, :32], weight)


def test_the_table_decides_what_pays() -> None:
    """Red if the table loses a shape of the model, or `is_faster` is true for one that it lacks."""
    for shape in SHAPES:
        assert configs.shape_key(shape.op, shape.rows, shape.columns) in configs.TABLE.read_text()
    some = torch.empty(workloads.LITE[0].rows, workloads.LITE[0].columns, device="meta")
    best = [configs.find("swiglu_linear", *some.shape, tokens) for tokens in range(1, 33)]
    assert [is_faster("swiglu_linear", some, tokens) for tokens in range(1, 33)] == [
        entry is not None for entry in best
    ]
    assert best[2] == best[3]  # 3 tokens take the entry of 4
    assert not is_faster("swiglu_linear", some, 0)
    assert not is_faster("swiglu_linear", some, 33)
    assert not is_faster("linear", some[:100], 1)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.name}-{s.rows}x{s.columns}")
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 8, 16, 30])
def test_model_shapes(shape: workloads.Shape, tokens: int) -> None:
    x, weight = workloads.make_inputs(tokens, shape.rows, shape.columns, seed=7, device="cuda")
    check(OPS[shape.op](x, weight), shape.op, x, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 4])
def test_a_captured_mlp_follows_its_inputs(tokens: int) -> None:
    """Two kernels in a row, the second of which starts before the first has ended: its x must be
    what the first wrote in this replay. Three layers, so that a stale one shows."""
    gate_up, down = workloads.LITE[:2]
    layers = [
        tuple(
            workloads.make_inputs(1, s.rows, s.columns, seed=i, device="cuda")[1]
            for s in (gate_up, down)
        )
        for i in range(3)
    ]

    def mlps(x: torch.Tensor) -> torch.Tensor:
        for first, second in layers:
            x = linear(swiglu_linear(x, first), second)
        return x

    x, _ = workloads.make_inputs(tokens, 1, gate_up.columns, seed=0, device="cuda")
    mlps(x)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = mlps(x)
    for seed in range(1, 20):
        x.copy_(workloads.make_inputs(tokens, 1, gate_up.columns, seed=seed, device="cuda")[0])
        graph.replay()
        torch.cuda.synchronize()
        eager = x
        for first, second in layers:
            eager = linear(swiglu_linear(eager, first), second)
            torch.cuda.synchronize()
        assert torch.equal(got, eager)
