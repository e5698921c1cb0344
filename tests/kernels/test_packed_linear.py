"""Both projections from 4-bit weights against float64, and Marlin's order against its words."""

from __future__ import annotations

import re

import pytest
import torch

from longcat_kernels.packed_linear import (
    configs,
    is_faster,
    linear,
    marlin,
    swiglu_linear,
    workloads,
)
from longcat_kernels.packed_linear.configs import Config
from longcat_kernels.packed_linear.marlin import Packed
from longcat_kernels.small_linear.configs import Op
from tests.kernels.test_small_linear import check

OPS = {"linear": linear, "swiglu_linear": swiglu_linear}
SHAPES = list(dict.fromkeys(shape for shapes in workloads.RANKS.values() for shape in shapes))
TUNED = {  # as serving calls them; shapes of an operation share their configurations
    (s.op, t, c)
    for s in SHAPES
    for t in configs.TOKENS
    if (c := configs.find(s.op, s.rows, s.columns, workloads.GROUP, t))
}
OTHERS = [
    Config(8, 128, ahead=1, warps=1),
    Config(16, 128, ahead=9, warps=1),  # ahead of more pieces than there are
    Config(16, 256, ahead=2, warps=4),
    Config(32, 128, ahead=1, warps=2),
    Config(64, 128, ahead=1, warps=1),
    Config(64, 256, ahead=2, warps=4),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that nobody tuned take whole tiles, and one tile a thread: the interpreter needs
    0.1 ms for each operation of a program. `test_configurations` has the pieces of serving."""
    force(Config(64, 128, ahead=1, warps=8), monkeypatch)


def force(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that are not in the table take `config`."""
    monkeypatch.setattr("longcat_kernels.packed_linear.launch.fallback", lambda group: config)


def check_packed(op: Op, x: torch.Tensor, weight: Packed) -> None:
    check(OPS[op](x, weight), op, x, marlin.widen(weight))


def test_a_word_holds_the_operand_of_a_lane() -> None:
    """The order as Marlin's repacking writes it, number by number. Red if `pack` has another."""
    n, k = 128, 32
    values = torch.arange(n * k).view(n, k) * 7 % 16
    words = marlin.pack(values, torch.ones(n, 1)).words
    for row, column in ((0, 0), (1, 200), (0, 137), (1, 127)):
        tile, word = divmod(column, 128)
        lane, warp = divmod(word, 4)
        inputs = [row * 16 + lane % 4 * 2 + offset for offset in (0, 1, 8, 9)]
        first = tile * 64 + warp * 16 + lane // 4
        eight = [int(values[n, k]) for n in (first, first + 8) for k in inputs]
        bits = sum(eight[v] << (4 * m) for m, v in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
        assert int(words[row, column]) & 0xFFFFFFFF == bits


def test_scales_are_in_the_order_of_the_words() -> None:
    """Marlin's place p of 64 has the scale of output p // 8 + 8 * (p % 8)."""
    scales = torch.arange(256.0).view(128, 2)
    stored = marlin.pack(torch.zeros(128, 256), scales).scales
    for place in (0, 1, 9, 63):
        output = place // 8 + 8 * (place % 8)
        assert torch.equal(stored[:, 64 + place], scales[64 + output])


def test_unpacking_undoes_packing() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(0, 16, (192, 384), generator=draw)
    scales = torch.rand(192, 3, generator=draw)
    got = marlin.unpack(marlin.pack(values, scales))
    assert torch.equal(got[0], values.int())
    assert torch.equal(got[1], scales)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("rows", "columns", "group"), [(128, 256, 128), (128, 384, 64), (256, 128, 32)]
)
def test_values(device: str, op: Op, tokens: int, rows: int, columns: int, group: int) -> None:
    """Red if a value is multiplied by another group's or output's scale, or by another input."""
    weight = workloads.make_weight(rows, columns, seed=rows, device=device, group=group)
    x = workloads.make_x(tokens, columns, seed=1, device=device)
    check_packed(op, x, weight)


@pytest.mark.parametrize(
    ("op", "tokens", "config"),
    [
        *sorted(TUNED),
        *(("linear", 1, c) for c in OTHERS),
        *(("swiglu_linear", 3, c) for c in OTHERS),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, Config) else None,
)
def test_configurations(
    device: str, op: Op, tokens: int, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a tuner writes a configuration that computes something else. Two pieces and a part of
    one."""
    force(config, monkeypatch)
    rows, columns = 64 if op == "linear" else 128, 2 * config.block_k + 128
    weight = workloads.make_weight(rows, columns, seed=1, device=device)
    check_packed(op, workloads.make_x(tokens, columns, seed=tokens, device=device), weight)


def test_rows_that_are_an_odd_number_of_tiles(device: str) -> None:
    """The first projection has 33 tiles."""
    weight = workloads.make_weight(3 * 64, 256, seed=2, device=device)
    check_packed("linear", workloads.make_x(2, 256, seed=2, device=device), weight)


def test_every_value_is_exact(device: str) -> None:
    """Each of the sixteen at each place of a word, by both numbers of tokens. Red if a bit of a
    neighbour gets into a value: the sum of eight products would hide one below bf16."""
    rows, columns = 64, 256
    values = torch.arange(rows)[:, None] + 3 * torch.arange(columns)
    weight = marlin.pack((values % 16).to(device), torch.ones(rows, 2).bfloat16().to(device))
    for column in (0, 1, 6, 8, 15, 17):
        x = torch.zeros(2, columns, dtype=torch.bfloat16, device=device)
        x[:, column] = 1
        for tokens in (1, 2):
            got = linear(x[:tokens], weight)
            wanted = (values[:, column] % 16 - 8).bfloat16().to(device)
            assert torch.equal(got, wanted.expand(tokens, -1))


@pytest.mark.parametrize("op", OPS)
def test_no_tokens(device: str, op: Op) -> None:
    weight = workloads.make_weight(128, 256, seed=0, device=device)
    x = workloads.make_x(0, 256, seed=0, device=device)
    assert OPS[op](x, weight).shape == (0, 128 if op == "linear" else 64)


def test_rows_of_a_wider_tensor(device: str) -> None:
    weight = workloads.make_weight(64, 256, seed=3, device=device)
    wide = workloads.make_x(3, 300, seed=3, device=device)
    for first in (0, 3, 16):
        check_packed("linear", wide[:, first : first + 256], weight)


def test_values_that_overflow_are_not_hidden(device: str) -> None:
    """A broken activation upstream must stay visible; other tokens must not see it."""
    weight = workloads.make_weight(128, 384, seed=5, device=device)
    x = workloads.make_x(3, 384, seed=5, device=device)
    x[1, 7] = float("nan")
    got = swiglu_linear(x, weight)
    assert bool(got[1].isnan().all())
    assert bool(got[[0, 2]].isfinite().all())


def test_what_is_not_served_says_so(device: str) -> None:
    weight = workloads.make_weight(192, 256, seed=6, device=device)
    x = workloads.make_x(5, 256, seed=6, device=device)
    with pytest.raises(ValueError, match="5 tokens: expected at most 4"):
        linear(x, weight)
    with pytest.raises(ValueError, match="192 rows"):
        swiglu_linear(x[:2], weight)
    with pytest.raises(ValueError, match="expected bf16"):
        linear(x[:2].float(), weight)
    with pytest.raises(ValueError, match=re.escape("expected bf16 [T, 256]")):
        linear(x[:2, :128], weight)
    with pytest.raises(ValueError, match="contiguous int32 and bf16"):
        linear(x[:2], Packed(weight.words, weight.scales.float()))
    with pytest.raises(ValueError, match="two or more groups"):
        linear(x[:2], Packed(weight.words, weight.scales[:1]))


def test_the_table_decides_what_pays_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the table loses a shape of the model, or decides on GPUs where nobody measured."""
    for shape in workloads.LITE:
        key = configs.shape_key(shape.op, shape.rows, shape.columns, workloads.GROUP)
        assert f'"{key}"' in configs.TABLE.read_text()
    words = torch.empty(192, 2 * 12288, dtype=torch.int32, device="meta")
    weight = Packed(words, torch.empty(24, 12288, dtype=torch.bfloat16, device="meta"))
    assert not is_faster("swiglu_linear", weight, 1)
    monkeypatch.setattr("longcat_kernels.packed_linear.is_hopper", lambda tensor: True)
    assert is_faster("swiglu_linear", weight, 1)
    assert not is_faster("swiglu_linear", weight, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.name}-{s.rows}x{s.columns}")
@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_model_shapes(shape: workloads.Shape, tokens: int) -> None:
    weight = workloads.make_weight(shape.rows, shape.columns, seed=7, device="cuda")
    check_packed(shape.op, workloads.make_x(tokens, shape.columns, seed=8, device="cuda"), weight)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 4])
def test_a_captured_mlp_follows_its_inputs(tokens: int) -> None:
    """The second kernel starts before the first has ended: its x must be this replay's."""
    layers = [
        [
            workloads.make_weight(s.rows, s.columns, seed=i, device="cuda")
            for s in workloads.LITE[:2]
        ]
        for i in range(3)
    ]

    def mlps(x: torch.Tensor) -> torch.Tensor:
        for first, second in layers:
            x = linear(swiglu_linear(x, first), second)
        return x

    x = workloads.make_x(tokens, 3072, seed=0, device="cuda")
    mlps(x)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = mlps(x)
    for seed in range(1, 20):
        x.copy_(workloads.make_x(tokens, 3072, seed=seed, device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        eager = x
        for first, second in layers:
            eager = linear(swiglu_linear(eager, first), second)
            torch.cuda.synchronize()
        assert torch.equal(got, eager)
