"""Routing against a definition in Python: float64 softmax, stable sort, a loop over the chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from longcat_kernels import lite
from longcat_kernels.kv_pool import PADDING_SLOT
from longcat_kernels.moe_router import Options, Routing, route, route_tokens, supports, workloads
from longcat_kernels.moe_router.workloads import OPTIONS

# Weights: fp32 rounding of exp's argument, of 384-term sums, and the GPU's 2-ulp exp. Ids: exact.
RELATIVE, ABSOLUTE = 2e-6, 1e-7 * lite.ROUTED_SCALE
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
    scale: float = lite.ROUTED_SCALE,
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
    return route(logits.to(device), bias.to(device), OPTIONS)


def run_hidden(logits: torch.Tensor, bias: torch.Tensor, device: str) -> Routing:
    """The same with a GEMM that only copies: one warp for each 128 experts chooses."""
    tokens, hidden = len(logits), 200  # two tiles
    at = torch.arange(tokens) * (hidden // tokens)
    x, weight = torch.zeros(tokens, hidden), torch.zeros(logits.shape[1], hidden)
    x[range(tokens), at], weight[:, at] = 1.0, logits.t()
    inputs = (x.bfloat16(), weight, bias)
    return route_inputs(inputs, device, OPTIONS)


both_paths = pytest.mark.parametrize("run", [run, run_hidden], ids=["logits", "hidden states"])
Run = Callable[[torch.Tensor, torch.Tensor, str], Routing]
each_call = pytest.mark.parametrize("run", [route, route_tokens], ids=["logits", "hidden states"])


def inputs_of(run: Callable[..., Routing], device: str) -> list[torch.Tensor]:
    """The arguments of `run` for nine tokens."""
    make = workloads.make_inputs if run is route else workloads.make_tokens
    return [values.to(device) for values in make(9, seed=0, device="cpu")]


@each_call
@pytest.mark.parametrize("held", [(0, 64), (64, 64), (192, 64), (250, 3), (7, 0)], ids=str)
def test_a_rank_names_its_own_experts(
    device: str, run: Callable[..., Routing], held: tuple[int, int]
) -> None:
    """Ids are places among the experts held. Red if another rank's slot or an identity slot gets
    one of our ids, or if a weight depends on the rank that computes the slot."""
    inputs = inputs_of(run, device)
    whole, ours = run(*inputs, OPTIONS), run(*inputs, OPTIONS._replace(held=held))
    first, count = held
    own = range(first, first + count)
    wanted = [[e - first if e in own else -1 for e in row] for row in whole.expert_ids.tolist()]
    assert ours.expert_ids.tolist() == wanted
    assert torch.equal(ours.weights, whole.weights)
    assert torch.equal(ours.identity_weight, whole.identity_weight)


@each_call
def test_padding_goes_nowhere(device: str, run: Callable[..., Routing]) -> None:
    """Red if a row that fills up a graph's batch still names an expert, whatever its token was, or
    if it changes another row."""
    inputs = inputs_of(run, device)
    inputs[0][7] = math.nan
    slots = torch.tensor([5, 1, 0, 2**40, 9, 0, 3, 0, 0], device=device)
    whole, ours = run(*inputs, OPTIONS), run(*inputs, OPTIONS._replace(slots=slots))
    for values, others, nothing in zip(ours, whole, (0.0, -1, 0.0), strict=True):
        assert (values[slots == PADDING_SLOT] == nothing).all()
        assert torch.equal(values[slots != PADDING_SLOT], others[slots != PADDING_SLOT])
    with pytest.raises(ValueError, match="expected one for each of 9 rows"):
        run(*inputs, OPTIONS._replace(slots=slots[1:]))


@both_paths
def test_random_logits_and_bias(device: str, run: Run) -> None:
    logits, bias = workloads.make_inputs(48, seed=0, device="cpu")
    scores = logits.double().softmax(-1) + bias
    ranked = scores.sort(descending=True).values[:, : lite.TOP_K + 1]
    clear = (ranked[:, :-1] - ranked[:, 1:]).amin(-1) > TOO_CLOSE
    assert clear.float().mean() > 0.9
    check(run(logits[clear], bias, device), logits[clear], best(scores[clear]))


@both_paths
def test_ties_go_to_the_lowest_expert(device: str, run: Run) -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 4, (32, lite.EXPERTS), generator=random).float()
    logits[0] = 0.0  # all 384 equal
    logits[1, : lite.ROUTED] = -1.0  # the identity experts tie
    logits[2, 60::24] = 5.0  # 14 tie, in three warps: no warp's own best may pass another's
    logits[3, 383], logits[3, :127] = 6.0, -1.0
    check(run(logits, torch.zeros(lite.EXPERTS), device), logits, best(logits))


@both_paths
def test_scores_around_zero(device: str, run: Run) -> None:
    """Negative scores, zeros of both signs (they tie), subnormal numbers, infinity: as integers
    their bits have another order."""
    logits = torch.full((2, lite.EXPERTS), -200.0)
    logits[0, 200], logits[1, 130:140] = 1.0, torch.arange(10).float() * 8
    bias = torch.linspace(-0.25, -0.5, lite.EXPERTS)
    places = [383, 1, 127, 128, 129, 255, 256, 3, 300, 301, 2]
    bias[places] = torch.tensor(
        [-0.0, 1e-40, -1e-40, 0.0, 2e-40, -1e-38, -0.0, 1e-38, -2e-40, math.inf, -1e-45]
    )
    check(run(logits, bias, device), logits, best(logits.double().softmax(-1) + bias))


@both_paths
def test_the_bias_chooses_but_does_not_weigh(device: str, run: Run) -> None:
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


@both_paths
@pytest.mark.parametrize("sign", [1, -1], ids=["all identity", "no identity"])
def test_all_slots_or_none_are_identity(device: str, sign: int, run: Run) -> None:
    logits, _ = workloads.make_inputs(8, seed=2, device="cpu")
    bias = torch.zeros(lite.EXPERTS)
    bias[lite.ROUTED :] = 2.0 * sign
    got = run(logits, bias, device)
    assert bool((got.expert_ids == -1).all()) == (sign > 0)
    check(got, logits, best(logits.double().softmax(-1) + bias))


@pytest.mark.parametrize(
    ("experts", "routed", "top_k"), [(12, 8, 12), (5, 5, 2), (130, 3, 7), (768 + 128, 768, 12)]
)
def test_other_models(device: str, experts: int, routed: int, top_k: int) -> None:
    logits, bias = workloads.make_inputs(5, seed=experts, device="cpu", experts=experts)
    got = route(logits.to(device), bias.to(device), Options(top_k, routed, scale=9.0))
    chosen = best(logits.double().softmax(-1) + bias, top_k)
    check(got, logits, chosen, routed, 9.0)
    if top_k == experts:  # every probability is used once
        total = (got.weights.sum(-1) + got.identity_weight).cpu()
        torch.testing.assert_close(total, torch.full((5,), 9.0), rtol=RELATIVE, atol=0)


ACCIDENTS = {
    "nan": [math.nan] * lite.EXPERTS,
    "one nan": [math.nan] + [0.0] * (lite.EXPERTS - 1),
    "inf": [math.inf] + [0.0] * (lite.EXPERTS - 1),
    "all inf": [math.inf] * lite.EXPERTS,
    "-inf": [-math.inf] * lite.EXPERTS,
}


@pytest.mark.parametrize("row", ACCIDENTS.values(), ids=ACCIDENTS)
def test_an_accident_takes_the_first_experts_and_shows(device: str, row: list[float]) -> None:
    """A numerical accident upstream must not become an out-of-bounds read in the grouped GEMM,
    which also needs a row's experts to be different; and it must not look like a result."""
    logits, bias = workloads.make_inputs(3, seed=3, device="cpu")
    clean = run(logits, bias, device)
    logits[1] = torch.tensor(row)
    got = run(logits, bias, device)
    assert got.expert_ids[1].tolist() == list(range(lite.TOP_K))
    assert bool(got.weights[1].isnan().all())
    for values, same in zip(got, clean):
        assert torch.equal(values[::2], same[::2])


@both_paths
def test_a_bias_that_is_no_number_counts_as_the_lowest(device: str, run: Run) -> None:
    """Four experts have numbers. The others follow in order, -inf and NaN alike."""
    bias = torch.full((lite.EXPERTS,), -math.inf)
    bias[100:200] = math.nan
    bias[[3, 150, 250, 383]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    got = run(torch.zeros(2, lite.EXPERTS), bias, device)
    assert got.expert_ids.tolist() == [[3, 150, 250, -1, 0, 1, 2, 4, 5, 6, 7, 8]] * 2


def test_no_tokens(device: str) -> None:
    got = run(*workloads.make_inputs(0, seed=4, device="cpu"), device)
    assert [tuple(t.shape) for t in got] == [(0, lite.TOP_K), (0, lite.TOP_K), (0,)]


def test_rows_of_a_wider_tensor(device: str) -> None:
    wide = workloads.make_inputs(4, seed=5, device=device, experts=400)[0]
    logits, bias = wide[:, : lite.EXPERTS], torch.zeros(lite.EXPERTS)
    for got, same in zip(run(logits, bias, device), run(logits.contiguous(), bias, device)):
        assert torch.equal(got, same)


@pytest.mark.gpu
def test_a_captured_call_follows_its_inputs() -> None:
    logits, bias = workloads.make_inputs(32, seed=0, device="cuda")
    route(logits, bias, OPTIONS)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = route(logits, bias, OPTIONS)
    for seed in range(1, 5):
        logits.copy_(workloads.make_inputs(32, seed=seed, device="cpu")[0])
        graph.replay()
        for captured, eager in zip(got, route(logits, bias, OPTIONS)):
            assert torch.equal(captured, eager)


# Twice the largest error of an fp32 GEMM in 64 tokens of the model (3e-6), a tenth of what a weight
# of two bf16 parts would make (8e-5). Scores are a few tenths at most.
LOGIT = 8e-6
TOO_CLOSE_LOGITS = 1e-6
# Two tiles by three, none of the last ones full: the interpreter takes 10 s for the model's 144.
SMALL: dict[str, Any] = {"experts": 100, "hidden": 300}
SMALL_OPTIONS = Options(top_k=3, routed=70, scale=2.0)


def check_tokens(got: Routing, inputs: tuple[torch.Tensor, ...], options: Options) -> None:
    """All against float64, but the ids of rows with a near tie only have to be in range."""
    x, weight, bias = (values.cpu().double() for values in inputs)
    probabilities = (x @ weight.t()).softmax(-1)
    ranked = (probabilities + bias).sort(descending=True, stable=True)
    gaps = -ranked.values.diff(dim=-1)[:, : options.top_k]
    clear = (gaps > TOO_CLOSE_LOGITS).all(-1)
    assert clear.sum() >= 0.9 * len(clear)
    chosen = ranked.indices[:, : options.top_k]
    identity = chosen >= options.routed
    weights = probabilities.gather(1, chosen) * options.scale
    values, ids, total = (part.cpu() for part in got)
    assert ids.shape == chosen.shape
    assert torch.equal(ids[clear], chosen.masked_fill(identity, -1).int()[clear])
    tolerance = {"rtol": RELATIVE + LOGIT, "atol": ABSOLUTE, "check_dtype": False}
    wanted = weights.masked_fill(identity, 0.0)[clear]
    torch.testing.assert_close(values[clear], wanted, **tolerance)
    wanted = (weights * identity).sum(-1)[clear]
    torch.testing.assert_close(total[clear], wanted, **tolerance)


def route_inputs(inputs: tuple[torch.Tensor, ...], device: str, options: Options) -> Routing:
    return route_tokens(*(values.to(device) for values in inputs), options)


@pytest.fixture(params=["few", "many"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernel multiplies, for any number of tokens."""
    limit = {"few": 10**6, "many": -1}[request.param]
    monkeypatch.setattr("longcat_kernels.moe_router.launch.FEW_TOKENS", limit)


def test_from_hidden_states(device: str) -> None:
    inputs = workloads.make_tokens(3, seed=0, device="cpu")
    check_tokens(route_inputs(inputs, device, OPTIONS), inputs, OPTIONS)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 9, 16, 30, 33, 64, 65, 200, 512, 1024, 1025, 4097])
def test_batches_of_the_model(tokens: int) -> None:
    inputs = workloads.make_tokens(tokens, seed=tokens, device="cpu")
    check_tokens(route_inputs(inputs, "cuda", OPTIONS), inputs, OPTIONS)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 16, 33, 64, 65, 129])
def test_tails_of_a_batch(device: str, tokens: int) -> None:
    """65 tokens are two blocks for one kernel, 129 for the other."""
    inputs = workloads.make_tokens(tokens, seed=tokens, device="cpu", **SMALL)
    check_tokens(route_inputs(inputs, device, SMALL_OPTIONS), inputs, SMALL_OPTIONS)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("experts", "hidden"), [(12, 64), (65, 129), (128, 1), (130, 129), (896, 64)]
)
def test_tails_of_a_tile(device: str, experts: int, hidden: int) -> None:
    """Of 130 experts the second warp has two, which is less than top_k."""
    inputs = workloads.make_tokens(9, seed=0, device="cpu", experts=experts, hidden=hidden)
    options = Options(top_k=4, routed=experts - 3, scale=6.0)
    check_tokens(route_inputs(inputs, device, options), inputs, options)


def test_no_hidden_states(device: str) -> None:
    got = route_inputs(workloads.make_tokens(0, seed=0, device="cpu"), device, OPTIONS)
    assert [tuple(t.shape) for t in got] == [(0, lite.TOP_K), (0, lite.TOP_K), (0,)]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("accident", [math.nan, math.inf, -math.inf], ids=str)
def test_an_accident_in_one_token_stays_there(device: str, accident: float) -> None:
    inputs = workloads.make_tokens(9, seed=0, device="cpu", **SMALL)
    clean = route_inputs(inputs, device, SMALL_OPTIONS)
    inputs[0][4, 200] = accident
    got = route_inputs(inputs, device, SMALL_OPTIONS)
    assert got.expert_ids[4].tolist() == list(range(SMALL_OPTIONS.top_k))
    others = [t for t in range(9) if t != 4]
    for values, same in zip(got, clean):
        assert torch.equal(values[others], same[others])


def test_other_dtypes_take_the_library_gemm(device: str) -> None:
    """The kernel splits the weight for bf16 hidden states; fp16 has more bits than its parts."""
    x, weight, bias = workloads.make_tokens(2, seed=0, device="cpu", **SMALL)
    for inputs in ((x.half(), weight, bias), (x.float(), weight, bias)):
        assert not supports(inputs[0].to(device), weight.to(device))
        check_tokens(route_inputs(inputs, device, SMALL_OPTIONS), inputs, SMALL_OPTIONS)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("most", "fewer"), [(200, (1, 2, 4, 8, 9, 30, 33, 64, 65)), (5000, (1025, 2050, 3000))]
)
def test_a_token_is_routed_alike_in_every_batch(most: int, fewer: tuple[int, ...]) -> None:
    """Speculation verifies tokens in one batch that decoding would have computed in another."""
    x, weight, bias = workloads.make_tokens(most, seed=0, device="cuda")
    whole = route_tokens(x, weight, bias, OPTIONS)
    for tokens in fewer:
        part = route_tokens(x[:tokens], weight, bias, OPTIONS)
        for values, same in zip(part, whole):
            assert torch.equal(values, same[:tokens])


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 4, 33, 64, 200, 1100])
def test_captured_launches_follow_their_inputs(tokens: int) -> None:
    """Back to back, so that a launch that starts too early reads or overwrites its neighbour's."""
    x, weight, bias = workloads.make_tokens(tokens, seed=0, device="cuda")
    route_tokens(x, weight, bias, OPTIONS)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = route_tokens(x, weight, bias, OPTIONS)
        x.mul_(2)
        second = route_tokens(x, weight, bias, OPTIONS)
    for seed in range(1, 20):
        hidden = workloads.make_tokens(tokens, seed=seed, device="cuda")[0]
        x.copy_(hidden)
        graph.replay()
        for got, inputs in ((first, hidden), (second, hidden * 2)):
            for captured, eager in zip(got, route_tokens(inputs, weight, bias, OPTIONS)):
                assert torch.equal(captured, eager)
