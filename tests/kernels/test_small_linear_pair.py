"""Projections with quantised inputs against float64; every configuration of the table."""

from __future__ import annotations

import pytest
import torch

from longcat_kernels.fp8_layout import Pair, quantise, scale_rows, scales_of
from longcat_kernels.fp8_layout import widen as widen_pair
from longcat_kernels.small_linear import (
    configs,
    pair_linear,
    pair_swiglu,
    pair_swiglu_bf16,
    workloads,
)
from longcat_kernels.small_linear.configs import Config
from longcat_kernels.small_linear.reference import widen

ALL = [
    *(*workloads.LITE, *workloads.LITE_TP2, *workloads.LITE_TP4, *workloads.LITE_TP8),
    *workloads.DRAFT,
]
TUNED = sorted(
    {
        (op, c)
        for s in ALL
        for t in workloads.BATCHES
        if (op := configs.PAIR_OF[s.op]) and (c := configs.find(op, s.rows, s.columns, t, fp8=True))
    }
)
OTHERS = [
    ("pair_linear", Config("pair", 64, 128, 0, 2, 4)),
    ("pair_linear", Config("pair", 128, 256, 2, 3, 8)),
    ("pair_swiglu", Config("pair", 128, 128, 1, 3, 8)),
    ("pair_swiglu", Config("pair", 128, 384, 2, 2, 4)),
]
MANTISSA = 2**-13  # of Hopper's sums of a block, and far more than those of fp32
Inputs = tuple[Pair, torch.Tensor, torch.Tensor]


def make(tokens: int, rows: int, columns: int, device: str, seed: int = 1) -> Inputs:
    """Each token, group and block has a scale of its own, so that a wrong one shows."""
    x, weight, scales = workloads.make_fp8_inputs(tokens, rows, columns, seed=seed, device=device)
    scales *= torch.arange(1, scales.numel() + 1, device=device).view_as(scales)
    x *= torch.arange(1, tokens + 1, device=device)[:, None]
    return quantise(x), weight, scales


def exact(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The product in float64, and how far sums may be from it."""
    pair, weight, scales = inputs
    x, wide = widen_pair(pair).double(), widen(weight, scales).double()
    return x @ wide.t(), (x.abs() @ wide.t().abs()) * MANTISSA


def check_linear(inputs: Inputs) -> None:
    got, (wanted, noise) = pair_linear(*inputs), exact(inputs)
    assert got.dtype == torch.bfloat16
    excess = (got.double() - wanted).abs() - wanted.abs() * 2**-7 - noise
    assert bool((excess <= 0).all()), f"{float(excess.max()):.2e} too far"


def exact_swiglu(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """SwiGLU in float64, and how far a bf16 result may be from it."""
    wide, noise = exact(inputs)
    (gate, up), (gate_noise, up_noise) = wide.chunk(2, -1), noise.chunk(2, -1)
    silu = gate * gate.sigmoid()
    moved = 1.1 * gate_noise * up.abs() + silu.abs() * up_noise
    return silu * up, moved + (silu * up).abs() * 2**-7


def check_swiglu_bf16(inputs: Inputs) -> None:
    got, (wanted, moved) = pair_swiglu_bf16(*inputs), exact_swiglu(inputs)
    assert got.dtype == torch.bfloat16
    excess = (got.double() - wanted).abs() - moved
    assert bool((excess <= 0).all()), f"{float(excess.max()):.2e} too far"


def check_swiglu(inputs: Inputs) -> None:
    """A value of a group is within half an e4m3 step of the exact one, which the group's largest
    value decides; subnormal steps are 2^-9 of the scale."""
    (q, q_scales), (wanted, moved) = pair_swiglu(*inputs), exact_swiglu(inputs)
    assert q.dtype == torch.float8_e4m3fn
    largest = wanted.abs().unflatten(1, (-1, 128)).amax(-1)
    slack = moved.unflatten(1, (-1, 128)).amax(-1) + largest * 2**-20
    assert bool(((q_scales.double() * 448 - largest).abs() <= slack).all()), "another scale"
    steps = wanted.abs() * 2**-4 + q_scales.double().repeat_interleave(128, 1) * 2**-10
    excess = (widen_pair((q, q_scales)).double() - wanted).abs() - steps - moved * 1.07
    assert bool((excess <= 0).all()), f"{float(excess.max()):.2e} too far"


CHECKS = {
    "pair_linear": check_linear,
    "pair_swiglu": check_swiglu,
    "pair_swiglu_bf16": check_swiglu_bf16,
}


def force(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that are not in the table take `config`."""
    monkeypatch.setattr("longcat_kernels.small_linear.launch.pair_fallback", lambda op: config)


@pytest.mark.parametrize("op", CHECKS)
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 32])
def test_values(device: str, op: str, tokens: int) -> None:
    """Red if a block is multiplied by another block's, token's or group's scale, or if gate and up
    are not of the same row."""
    CHECKS[op](make(tokens, 512, 384, device))


@pytest.mark.parametrize("rows", [1, 66, 192])
def test_rows_that_end_inside_a_block(device: str, rows: int) -> None:
    """The first projection has 2,112 rows: 16 blocks and a half."""
    check_linear(make(3, rows, 256, device))


@pytest.mark.parametrize(("op", "config"), [*TUNED, *OTHERS], ids=str)
def test_configurations(
    device: str, op: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a tuner writes a configuration that computes something else."""
    force(config, monkeypatch)
    columns = config.block_k * (config.stages + 1)  # the pipeline fills, runs and ends
    for tokens in (4, 17):
        inputs = make(tokens, 256, columns, device)
        CHECKS[op](inputs)
        if op == "pair_swiglu":
            check_swiglu_bf16(inputs)


def test_scales_of_a_wider_pair(device: str) -> None:
    """Red if the kernel assumes rows of scales that are padded to four tokens."""
    (q, _), weight, scales = make(5, 128, 256, device)
    pair = q[:3], scales_of(scale_rows(9, 256, device).fill_(0.5), 9)[:3]
    check_linear((pair, weight, scales))


def test_padded_tokens_of_the_result_can_be_read_by_the_next(device: str) -> None:
    """A SwiGLU's pair has the layout that `pair_linear` and DeepGEMM read."""
    pair = pair_swiglu(*make(5, 512, 128, device))
    assert pair[1].stride() == (1, 8)
    check_linear((pair, *make(5, 128, 256, device)[1:]))


@pytest.mark.parametrize("op", [pair_linear, pair_swiglu, pair_swiglu_bf16])
def test_no_tokens(device: str, op) -> None:
    got = op(*make(0, 256, 128, device))
    assert (got if isinstance(got, torch.Tensor) else got[0]).shape[0] == 0


def test_what_is_not_served_says_so(device: str) -> None:
    (q, q_scales), weight, scales = make(2, 256, 256, device)
    with pytest.raises(ValueError, match="at most 32 tokens"):
        pair_linear(quantise(torch.zeros(33, 256, device=device)), weight, scales)
    with pytest.raises(ValueError, match="expected contiguous"):
        pair_linear((q.float(), q_scales), weight, scales)
    with pytest.raises(ValueError, match="a row for each group"):
        pair_linear((q, q_scales.contiguous()), weight, scales)
    with pytest.raises(ValueError, match="expected fp32"):
        pair_linear((q, q_scales), weight, scales[:1])
    for swiglu in (pair_swiglu, pair_swiglu_bf16):
        with pytest.raises(ValueError, match="multiple of 256"):
            swiglu((q, q_scales), weight[:128], scales[:1])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ALL, ids=lambda s: f"{s.name}-{s.rows}")
@pytest.mark.parametrize("tokens", [1, 4, 7, 16, 30])
def test_model_shapes(shape: workloads.Shape, tokens: int) -> None:
    inputs = make(tokens, shape.rows, shape.columns, "cuda")
    CHECKS[configs.PAIR_OF[shape.op]](inputs)
    if shape.op == "swiglu_linear":
        check_swiglu_bf16(inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 4, 30])
def test_a_captured_mlp_follows_its_inputs(tokens: int) -> None:
    """The second kernel starts before the first has ended: its pair must be this replay's."""
    first, second = (make(1, s.rows, s.columns, "cuda", seed=3)[1:] for s in workloads.LITE[:2])
    static = quantise(torch.zeros(tokens, 3072, device="cuda"))
    pair_linear(pair_swiglu(static, *first), *second)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = pair_linear(pair_swiglu(static, *first), *second)
    for seed in range(1, 20):
        x = workloads.make_inputs(tokens, 1, 3072, seed=seed, device="cuda")[0]
        for target, value in zip(static, quantise(x)):
            target.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        middle = pair_swiglu(static, *first)
        torch.cuda.synchronize()
        assert torch.equal(got, pair_linear(middle, *second))
