"""Both projections from block-FP8 weights against float64; every configuration of the table."""

from __future__ import annotations

import pytest
import torch

from longcat_kernels.fp8_layout import GROUP, quantise_blocks
from longcat_kernels.small_linear import configs, is_faster, linear, swiglu_linear, workloads
from longcat_kernels.small_linear.configs import Config, Op
from longcat_kernels.small_linear.reference import widen
from tests.kernels.test_small_linear import check, force

OPS = {"linear": linear, "swiglu_linear": swiglu_linear}
SHAPES = [*workloads.LITE, *workloads.LITE_TP2, *workloads.LITE_TP4, *workloads.LITE_TP8]
ALL = [*SHAPES, *workloads.DRAFT, *workloads.HEADS.values()]
TUNED = sorted(
    {
        c
        for s in ALL
        for t in workloads.BATCHES
        if (c := configs.find(s.op, s.rows, s.columns, t, fp8=True))
    }
)
OTHERS = [
    Config("gemv", 1, 128, 1, 1, 1),
    Config("gemv", 8, 256, 9, 1, 2),  # ahead of more tiles than there are
    Config("few", 1, 256, 1, 1, 1),
    Config("few", 4, 1024, 9, 1, 2),
    Config("mma", 16, 128, 0, 2, 1),
    Config("mma", 8, 256, 1, 3, 2),
    Config("mma", 32, 512, 3, 3, 4),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that nobody tuned take 32 rows a program: the interpreter needs milliseconds for each
    program. `test_configurations` has the tiles that serving takes."""

    def wide(columns: int, tokens: int, fp8: bool) -> Config:
        return configs.fallback(columns, tokens, fp8)._replace(block_n=32)

    monkeypatch.setattr("longcat_kernels.small_linear.launch.fallback", wide)


def check_fp8(op: Op, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> None:
    check(OPS[op](x, weight, scales), op, x, widen(weight, scales))


def test_quantised_blocks_have_the_largest_value_and_keep_the_rest() -> None:
    """Red if a scale is taken over other blocks, or is the inverse."""
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)) * 3
    weight[128:, :128] *= 100
    q, scales = quantise_blocks(weight)
    assert scales.shape == (2, 3)
    assert float(scales[1, 0]) == pytest.approx(float(weight[128:, :128].abs().max()) / 448)
    wide = scales.repeat_interleave(GROUP, 0)[:200].repeat_interleave(GROUP, 1)[:, :300]
    torch.testing.assert_close(q.float() * wide, weight, rtol=2**-4, atol=float(scales.max()) / 64)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 17])
@pytest.mark.parametrize(("rows", "columns"), [(256, 128), (256, 384)])
def test_values(device: str, op: Op, tokens: int, rows: int, columns: int) -> None:
    """Red if a block is multiplied by another block's scale."""
    x, weight, scales = workloads.make_fp8_inputs(tokens, rows, columns, seed=rows, device=device)
    scales *= torch.arange(1, scales.numel() + 1, device=device).view_as(scales)
    check_fp8(op, x, weight, scales)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("rows", [1, 66, 192])
def test_rows_that_end_inside_a_block(device: str, tokens: int, rows: int) -> None:
    """The first projection has 2,112 rows: 16 blocks and a half."""
    x, weight, scales = workloads.make_fp8_inputs(tokens, rows, 256, seed=1, device=device)
    scales *= torch.arange(1, scales.numel() + 1, device=device).view_as(scales)
    check_fp8("linear", x, weight, scales)


@pytest.mark.parametrize("config", [*TUNED, *OTHERS], ids=lambda c: "-".join(map(str, c)))
def test_configurations(device: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a tuner writes a configuration that computes something else. More than two tiles of
    columns and a tail."""
    force(config, monkeypatch)
    columns, rows = (config.ahead + 1) * config.block_k + 128, 2 * config.block_n + 1
    for tokens in {"gemv": (1,), "few": (2, 3, 4), "mma": (5, 19)}[config.program]:
        x, weight, scales = workloads.make_fp8_inputs(tokens, rows, columns, seed=1, device=device)
        check_fp8("linear", x, weight, scales)


@pytest.mark.parametrize(
    "config", [c for c in OTHERS if c.block_n > 1], ids=lambda c: "-".join(map(str, c))
)  # a program a row takes the interpreter 17 s
def test_swiglu_configurations(
    device: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(config, monkeypatch)
    for tokens in {"gemv": (1,), "few": (3,), "mma": (5,)}[config.program]:
        inputs = workloads.make_fp8_inputs(tokens, 256, 384, seed=1, device=device)
        check_fp8("swiglu_linear", *inputs)


def test_every_finite_weight_is_exact(device: str) -> None:
    """All 254 values of e4m3, subnormal ones too, one a row, by both programs."""
    bits = torch.arange(256, dtype=torch.uint8)
    values = bits[(bits & 0x7F) != 0x7F].to(device).view(torch.float8_e4m3fn)
    weight = torch.zeros(values.numel(), 128, device=device).to(torch.float8_e4m3fn)
    weight.view(torch.uint8)[:, 5] = values.view(torch.uint8)
    x = torch.ones(4, 128, dtype=torch.bfloat16, device=device)
    scales = torch.ones(2, 1, device=device)
    for tokens in (1, 4):
        got = linear(x[:tokens], weight, scales)
        assert torch.equal(got, values.float().bfloat16().expand(tokens, -1))


def test_what_is_not_served_says_so(device: str) -> None:
    x, weight, scales = workloads.make_fp8_inputs(2, 256, 256, seed=0, device=device)
    with pytest.raises(ValueError, match="expected fp32"):
        linear(x, weight, scales[:1])
    with pytest.raises(ValueError, match="expected fp32"):
        linear(x, weight, scales.bfloat16())
    with pytest.raises(ValueError, match="multiple of 256"):
        swiglu_linear(x, weight[:128], scales[:1])
    with pytest.raises(ValueError, match=r"contiguous torch\.bfloat16 weight"):
        linear(x, weight)


def test_the_table_decides_what_pays() -> None:
    """Red if the table loses a shape of the model."""
    for shape in (*workloads.LITE, *workloads.DRAFT, workloads.HEADS[1]):
        key = configs.shape_key(shape.op, shape.rows, shape.columns, fp8=True)
        assert f'"{key}"' in configs.TABLE.read_text()
    weight = torch.empty(12288, 3072, dtype=torch.float8_e4m3fn, device="meta")
    best = configs.find("swiglu_linear", 12288, 3072, 1, fp8=True)
    assert is_faster("swiglu_linear", weight, 1) == (best is not None)
    assert not is_faster("swiglu_linear", weight, 33)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ALL, ids=lambda s: f"{s.name}-{s.rows}")
@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 16, 30])
def test_model_shapes(shape: workloads.Shape, tokens: int) -> None:
    inputs = workloads.make_fp8_inputs(tokens, shape.rows, shape.columns, seed=7, device="cuda")
    check_fp8(shape.op, *inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 4])
def test_a_captured_mlp_follows_its_inputs(tokens: int) -> None:
    """The second kernel starts before the first has ended: its x must be this replay's."""
    layers = [
        tuple(
            workloads.make_fp8_inputs(1, s.rows, s.columns, seed=i, device="cuda")[1:]
            for s in workloads.LITE[:2]
        )
        for i in range(3)
    ]

    def mlps(x: torch.Tensor) -> torch.Tensor:
        for first, second in layers:
            x = linear(swiglu_linear(x, *first), *second)
        return x

    x, _ = workloads.make_inputs(tokens, 1, 3072, seed=0, device="cuda")
    mlps(x)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = mlps(x)
    for seed in range(1, 20):
        x.copy_(workloads.make_inputs(tokens, 1, 3072, seed=seed, device="cuda")[0])
        graph.replay()
        torch.cuda.synchronize()
        eager = x
        for first, second in layers:
            eager = linear(swiglu_linear(eager, *first), *second)
            torch.cuda.synchronize()
        assert torch.equal(got, eager)
