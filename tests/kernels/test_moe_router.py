"""Routing against a definition in Python: float64 softmax, stable sort, a loop over the chosen."""

from __future__ import annotations

import math

import pytest
import torch

from longcat_kernels.moe_router import Routing, route
from longcat_kernels.moe_router import workloads as lite

# Weights: fp32 rounding of exp's argument, of 384-term sums, and the GPU's 2-ulp exp. Ids: exact.
RELATIVE, ABSOLUTE = 2e-6, 1e-7 * lite.SCALE
# Two fp32 scores closer than this may swap with the order of the softmax sum.
TOO_CLOSE = 1e-7


def probabilities(logits: list[float]) -> list[float]:
    largest = max(logits)
    exponents = [math.exp(logit - largest) for logit in logits]
    return [exponent / math.fsum(exponents) for exponent in exponents]


def check(
    got: Routing,
    logits: torch.Tensor,
    chosen: list[list[int]],
    routed: int = lite.ROUTED,
    scale: float = lite.SCALE,
) -> None:
    """All three outputs, given the experts that should be chosen, in order."""
    weights, identity = [], []
    for row, experts in zip(logits.tolist(), chosen, strict=True):
        p = probabilities(row)
        weights.append([scale * p[e] if e < routed else 0.0 for e in experts])
        identity.append(scale * math.fsum(p[e] for e in experts if e >= routed))
    assert got.expert_ids.tolist() == [[e if e < routed else -1 for e in row] for row in chosen]
    assert got.expert_ids.dtype == torch.int32
    for values, wanted in ((got.weights, weights), (got.identity_weight, identity)):
        torch.testing.assert_close(values.cpu(), torch.tensor(wanted), rtol=RELATIVE, atol=ABSOLUTE)


def best(rows: torch.Tensor, top_k: int = lite.TOP_K) -> list[list[int]]:
    """Highest first, the lowest expert first among equals."""
    order = [sorted(range(len(row)), key=lambda e, row=row: -row[e]) for row in rows.tolist()]
    return [row[:top_k] for row in order]


def run(logits: torch.Tensor, bias: torch.Tensor, device: str) -> Routing:
    return route(
        logits.to(device), bias.to(device), top_k=lite.TOP_K, routed=lite.ROUTED, scale=lite.SCALE
    )


def test_random_logits_and_bias(device: str) -> None:
    logits, bias = lite.make_inputs(48, seed=0, device="cpu")
    scores = logits.double().softmax(-1) + bias
    ranked = scores.sort(descending=True).values[:, : lite.TOP_K + 1]
    clear = (ranked[:, :-1] - ranked[:, 1:]).amin(-1) > TOO_CLOSE
    assert clear.float().mean() > 0.9
    check(run(logits[clear], bias, device), logits[clear], best(scores[clear]))


def test_ties_go_to_the_lowest_expert(device: str) -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 4, (32, lite.EXPERTS), generator=random).float()
    logits[0] = 0.0  # all 384 equal
    logits[1, : lite.ROUTED] = -1.0  # the identity experts tie
    check(run(logits, torch.zeros(lite.EXPERTS), device), logits, best(logits))


def test_the_bias_chooses_but_does_not_weigh(device: str) -> None:
    logits = torch.zeros(3, lite.EXPERTS)
    bias = torch.arange(lite.EXPERTS) % 16 / 16
    got = run(logits, bias, device)
    check(got, logits, best(bias.expand(3, -1)))


@pytest.mark.parametrize("fill", [-math.inf, -1e30, -200.0], ids=str)
def test_experts_without_probability_fill_up_in_order(device: str, fill: float) -> None:
    logits = torch.full((2, lite.EXPERTS), fill)
    logits[0, [300, 7, 9]] = torch.tensor([3.0, 1.0, 2.0])
    logits[1, 383] = 1e30
    chosen = [
        [300, 9, 7, 0, 1, 2, 3, 4, 5, 6, 8, 10],
        [383, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    ]
    check(run(logits, torch.zeros(lite.EXPERTS), device), logits, chosen)


@pytest.mark.parametrize("sign", [1, -1], ids=["all identity", "no identity"])
def test_all_slots_or_none_are_identity(device: str, sign: int) -> None:
    logits, _ = lite.make_inputs(8, seed=2, device="cpu")
    bias = torch.zeros(lite.EXPERTS)
    bias[lite.ROUTED :] = 2.0 * sign
    got = run(logits, bias, device)
    assert bool((got.expert_ids == -1).all()) == (sign > 0)
    check(got, logits, best(logits.double().softmax(-1) + bias))


@pytest.mark.parametrize(
    ("experts", "routed", "top_k"), [(12, 8, 12), (5, 5, 2), (130, 3, 7), (768 + 128, 768, 12)]
)
def test_other_models(device: str, experts: int, routed: int, top_k: int) -> None:
    logits, bias = lite.make_inputs(5, seed=experts, device="cpu", experts=experts)
    got = route(logits.to(device), bias.to(device), top_k=top_k, routed=routed, scale=9.0)
    chosen = best(logits.double().softmax(-1) + bias, top_k)
    check(got, logits, chosen, routed, 9.0)
    if top_k == experts:  # every probability is used once
        total = (got.weights.sum(-1) + got.identity_weight).cpu()
        torch.testing.assert_close(total, torch.full((5,), 9.0), rtol=RELATIVE, atol=0)


def test_a_row_of_nan_stays_within_the_experts(device: str) -> None:
    """A numerical accident upstream must not become an out-of-bounds read in the grouped GEMM."""
    logits, bias = lite.make_inputs(3, seed=3, device="cpu")
    logits[0], logits[1, 5], logits[2, 5] = math.nan, math.nan, math.inf
    ids = run(logits, bias, device).expert_ids
    assert int(ids.min()) >= -1
    assert int(ids.max()) < lite.ROUTED


def test_no_tokens(device: str) -> None:
    got = run(*lite.make_inputs(0, seed=4, device="cpu"), device)
    assert [tuple(t.shape) for t in got] == [(0, lite.TOP_K), (0, lite.TOP_K), (0,)]


def test_rows_of_a_wider_tensor(device: str) -> None:
    wide = lite.make_inputs(4, seed=5, device=device, experts=400)[0]
    logits, bias = wide[:, : lite.EXPERTS], torch.zeros(lite.EXPERTS)
    for got, same in zip(run(logits, bias, device), run(logits.contiguous(), bias, device)):
        assert torch.equal(got, same)


@pytest.mark.gpu
def test_a_captured_call_follows_its_inputs() -> None:
    options = {"top_k": lite.TOP_K, "routed": lite.ROUTED, "scale": lite.SCALE}
    logits, bias = lite.make_inputs(32, seed=0, device="cuda")
    route(logits, bias, **options)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = route(logits, bias, **options)
    for seed in range(1, 5):
        logits.copy_(lite.make_inputs(32, seed=seed, device="cpu")[0])
        graph.replay()
        for captured, eager in zip(got, route(logits, bias, **options)):
            assert torch.equal(captured, eager)
