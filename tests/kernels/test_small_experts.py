"""The mixture of few tokens against float64, in bf16 and block FP8."""

from __future__ import annotations

import os

import pytest
import torch

from longcat_kernels.small_experts import configs, experts, is_faster, supports, workloads
from longcat_kernels.small_experts.configs import Config
from longcat_kernels.small_experts.reference import Weights
from longcat_kernels.small_linear.reference import widen

SMALL = workloads.Shape("small", 5, 128, 256)
WIDE = workloads.Shape("wide", 3, 384, 640)  # groups of 128 that are no power of two
TUNED = sorted(
    {
        (fp8, c)
        for s in workloads.SHAPES
        for t in workloads.BATCHES
        for fp8 in (False, True)
        if (c := configs.find(s.columns, s.hidden, t, fp8))
    }
)
OTHERS = [
    Config(4, 128, 1, 1, 4, 1, 1),
    Config(8, 256, 9, 2, 8, 12, 2),  # ahead of more tiles than there are
    Config(16, 1024, 1, 4, 4, 3, 4),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, sizes that nobody tuned take 128 rows a program, because it needs
    milliseconds for each. `test_configurations` has the tiles that serving takes."""
    if "TRITON_INTERPRET" in os.environ:
        wide = Config(128, 256, 2, 4, 128, 6, 4)
        monkeypatch.setattr("longcat_kernels.small_experts.launch.fallback", lambda fp8: wide)


def exact(
    inputs: workloads.Inputs, weights: Weights, identity: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """y in float64, with h rounded to bf16 as the first launch stores it; and how far the result
    may be: an ulp of each h (its fp32 sum may round to the other neighbour) and the order of
    sums."""
    x = inputs.x.double()
    y, noise = torch.zeros_like(x), torch.zeros_like(x)
    for t, k in (inputs.ids >= 0).nonzero().tolist():
        up, down, *scales = (None if w is None else w[inputs.ids[t, k]] for w in weights)
        gate, value = (x[t] @ widen(up, scales[0]).double().t()).chunk(2)
        hidden = (gate * gate.sigmoid() * value).bfloat16().double()
        wide, factor = widen(down, scales[1]).double(), inputs.factors[t, k].double()
        y[t] += factor * (wide @ hidden)
        noise[t] += factor * (wide.abs() @ hidden.abs()) * 2**-7
    if identity:
        y += inputs.identity.double()[:, None] * x
    return y, noise


def check(got: torch.Tensor, inputs: workloads.Inputs, weights: Weights, identity: bool) -> None:
    wanted, noise = exact(inputs, weights, identity)
    assert got.dtype == torch.bfloat16
    excess = (got.double() - wanted).abs() - wanted.abs() * 2**-7 - noise - 1e-6
    assert bool((excess <= 0).all()), f"{float(excess.max()):.2e} too far"
    # The bound above allows every h an ulp; nearly all round alike.
    error = float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))
    assert error < 2**-7, error


def run(
    shape: workloads.Shape,
    tokens: int,
    fp8: bool,
    device: str,
    identity: bool = True,
    seed: int = 0,
) -> None:
    weights = workloads.make_weights(shape, fp8=fp8, seed=seed, device=device)
    inputs = workloads.make_inputs(shape, tokens, seed=seed, device=device)
    x, ids, factors, weight = inputs
    check(
        experts(x, ids, factors, weights, weight if identity else None), inputs, weights, identity
    )


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("shape", [SMALL, WIDE], ids=lambda s: s.name)
@pytest.mark.parametrize("tokens", [1, 3])
def test_values(device: str, shape: workloads.Shape, tokens: int, fp8: bool) -> None:
    """Red if a slot takes another expert, row, scale or factor."""
    run(shape, tokens, fp8, device)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_another_rank_adds_the_identity_part(device: str, fp8: bool) -> None:
    run(SMALL, 2, fp8, device, identity=False)


@pytest.mark.parametrize(
    ("fp8", "config"),
    [*TUNED, *((fp8, c) for fp8 in (False, True) for c in OTHERS)],
    ids=lambda v: "-".join(map(str, v)) if isinstance(v, Config) else f"fp8={v}",
)
def test_configurations(
    device: str, fp8: bool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a tuner writes a configuration that computes something else."""
    monkeypatch.setattr("longcat_kernels.small_experts.launch.fallback", lambda fp8: config)
    shape = workloads.Shape("tiles", 1, 128, 384)
    weights = workloads.make_weights(shape, fp8=fp8, seed=0, device=device)
    inputs = workloads.make_inputs(shape, 1, seed=0, device=device)
    ids = torch.tensor([[0, -1, 0]], dtype=torch.int32, device=device)
    inputs = inputs._replace(ids=ids, factors=inputs.factors[:, :3].contiguous())
    check(experts(*inputs[:3], weights, inputs.identity), inputs, weights, True)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_slots_without_an_expert_are_not_read(device: str, fp8: bool) -> None:
    """Padding has only such slots; the rows of h that nobody wrote may hold NaN."""
    weights = workloads.make_weights(SMALL, fp8=fp8, seed=0, device=device)
    x, ids, factors, identity = workloads.make_inputs(SMALL, 2, seed=0, device=device)
    ids[1] = -1
    got = experts(x, ids, factors, weights, identity)
    # The interpreter cuts fp32 off to bf16 where the GPU rounds to nearest: an ulp.
    torch.testing.assert_close(got[1].float(), identity[1] * x[1].float(), rtol=2**-7, atol=0)
    assert bool(experts(x, ids, factors, weights)[1].eq(0).all())


def test_tokens_may_share_an_expert(device: str) -> None:
    weights = workloads.make_weights(SMALL, fp8=True, seed=0, device=device)
    inputs = workloads.make_inputs(SMALL, 4, seed=0, device=device)
    inputs.ids.clamp_(max=0)
    x, ids, factors, identity = inputs
    check(experts(x, ids, factors, weights, identity), inputs, weights, True)


def test_values_that_overflow_are_not_hidden(device: str) -> None:
    weights = workloads.make_weights(SMALL, fp8=True, seed=0, device=device)
    x, ids, factors, identity = workloads.make_inputs(SMALL, 3, seed=0, device=device)
    x[1, 7] = float("nan")
    got = experts(x, ids, factors, weights, identity)
    assert bool(got[1].isnan().all())
    assert bool(got[[0, 2]].isfinite().all())


def test_no_tokens(device: str) -> None:
    weights = workloads.make_weights(SMALL, fp8=False, seed=0, device=device)
    x, ids, factors, identity = workloads.make_inputs(SMALL, 0, seed=0, device=device)
    assert experts(x, ids, factors, weights, identity).shape == (0, SMALL.hidden)


def test_what_is_not_served_says_so(device: str) -> None:
    weights = workloads.make_weights(SMALL, fp8=True, seed=0, device=device)
    x, ids, factors, _ = workloads.make_inputs(SMALL, 1, seed=0, device=device)
    assert supports(weights)
    assert not supports(weights._replace(down_scales=None))
    assert not supports(Weights(weights.gate_up.bfloat16(), weights.down[:, :, :96].bfloat16()))
    with pytest.raises(ValueError, match="expected bf16, or e4m3 with two tensors of scales"):
        experts(x, ids, factors, weights._replace(down_scales=None))


def test_the_table_decides_what_pays() -> None:
    """Red if the table loses the experts of one GPU, or `is_faster` ignores it."""
    for fp8 in (False, True):
        assert f'"{configs.key(1024, 3072, fp8)}"' in configs.TABLE.read_text()
    down = torch.empty(256, 3072, 1024, device="meta")
    weights = Weights(torch.empty(256, 2048, 3072, device="meta"), down)
    best = configs.find(1024, 3072, 1, fp8=False)
    assert is_faster(weights, 1) == (best is not None)
    assert not is_faster(weights, configs.MOST_TOKENS + 1)
    assert not is_faster(weights, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("tokens", [1, 4, 7, 16])
def test_model_shapes(tokens: int, fp8: bool) -> None:
    shape = workloads.LITE._replace(experts=24)
    run(shape, tokens, fp8, "cuda", seed=tokens)


@pytest.mark.gpu
def test_a_captured_mixture_follows_its_ids() -> None:
    """The second launch reads ids before the first has ended: they must be this replay's, although
    L1 may hold those of the last one."""
    weights = workloads.make_weights(SMALL, fp8=True, seed=0, device="cuda")
    now = workloads.make_inputs(SMALL, 4, seed=0, device="cuda")
    source = workloads.make_inputs(SMALL, 4, seed=0, device="cuda")

    def route_and_mix() -> torch.Tensor:
        for to, of in zip(now, source, strict=True):
            to.copy_(of)
        x, ids, factors, identity = now
        return experts(x, ids, factors, weights, identity)

    route_and_mix()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = route_and_mix()
    for seed in range(1, 20):
        fresh = workloads.make_inputs(SMALL, 4, seed=seed, device="cuda")
        for to, of in zip(source, fresh, strict=True):
            to.copy_(of)
        graph.replay()
        torch.cuda.synchronize()
        check(got, fresh, weights, True)
