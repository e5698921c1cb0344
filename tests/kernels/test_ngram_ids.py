"""The n-gram ids against a walk over the text in Python integers. All comparisons are exact."""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

import pytest
import torch

from longcat_kernels import lite, ngram
from longcat_kernels.ngram import Prefill, Window, workloads

LARGEST = lite.VOCAB - 1
EOS = lite.EOS[0]
TOKENS = (0, 1, EOS, LARGEST)  # the ones that could be mistaken for "nothing", and the largest sums
LAST = lite.CONTEXT - 1


class Request(NamedTuple):
    """A slot's text up to and with the tokens it feeds now; text[0] stands at position `first`."""

    slot: int
    text: list[int]
    feeds: int
    first: int = 0

    @property
    def start(self) -> int:
        return self.first + len(self.text) - self.feeds


def make_request(slot: int, feeds: int, *, start: int, seed: int = 0) -> Request:
    """`feeds` random tokens from position `start` on, and the predecessors they can see."""
    rng = random.Random(f"{slot} {feeds} {start} {seed}")
    first = max(0, start - lite.NGRAM_N + 1)
    text = [rng.choice((*TOKENS, *[rng.randrange(lite.VOCAB)] * 4)) for _ in range(start - first)]
    text += [rng.choice((*TOKENS, *[rng.randrange(lite.VOCAB)] * 4)) for _ in range(feeds)]
    return Request(slot, text, feeds, first)


def expected(request: Request, eos: tuple[int, ...] = lite.EOS) -> list[list[int]]:
    fed = range(len(request.text) - request.feeds, len(request.text))
    return [[_row(request.text, t, i, eos) for i in range(lite.NGRAM_TABLES)] for t in fed]


def _row(text: list[int], t: int, table: int, eos: tuple[int, ...]) -> int:
    total = text[t]
    for back in range(1, lite.NGRAM_ORDERS[table]):
        if t < back or text[t - back] in eos:
            break
        total += text[t - back] * lite.VOCAB**back
    return sum(lite.NGRAM_ROWS[:table]) + total % lite.NGRAM_ROWS[table]


class Cache:
    """A ring on `device` whose unwritten cells hold a token, not zeros, and calls into the op."""

    def __init__(self, device: str, slots: int = 8, eos: tuple[int, ...] = lite.EOS) -> None:
        self.device = device
        self.params = workloads.lite_params(device, eos=eos)
        self.ring = torch.full((slots, lite.RING), 77_777, dtype=torch.int32, device=device)

    def on(self, values: list[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def seed(self, requests: list[Request]) -> None:
        seeds = [
            (request.slot, request.first + i, token)
            for request in requests
            for i, token in enumerate(request.text[: request.start - request.first])
        ]
        if seeds:
            slots, positions, tokens = (self.on(list(column)) for column in zip(*seeds))
            ngram.seed(self.ring, slots, positions, tokens)

    def window(
        self, requests: list[Request], padding: int = 0, dtype: torch.dtype = torch.int64
    ) -> list[list[list[int]]]:
        """Ids by request, then those of `padding` rows that feed zeros into slot 0."""
        width = requests[0].feeds
        padded = [*requests, *[Request(0, [0] * width, width)] * padding]
        tokens, positions = _flat(padded)
        window = Window(
            self.on(tokens, dtype),
            positions=self.on(positions),
            slots=self.on([request.slot for request in padded]),
        )
        ids = ngram.window_ids(window, self.ring, self.params)
        return ids.view(-1, width, lite.NGRAM_TABLES).tolist()

    def extend(
        self, requests: list[Request], padding: int = 0, dtype: torch.dtype = torch.int64
    ) -> list[list[int]]:
        """Ids of all tokens, the padding's last."""
        tokens, positions = _flat(requests)
        lengths = [request.feeds for request in requests]
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        prefill = Prefill(
            self.on(tokens + [0] * padding, dtype),
            positions=self.on(positions + [0] * padding),
            slots=self.on([request.slot for request in requests]),
            starts=self.on(starts, torch.int32),
            lengths=self.on(lengths, torch.int32),
        )
        return ngram.extend_ids(prefill, self.ring, self.params).tolist()


def _flat(requests: list[Request]) -> tuple[list[int], list[int]]:
    """Fed tokens and their positions."""
    tokens = [
        token for request in requests for token in request.text[request.start - request.first :]
    ]
    return tokens, [r.start + i for r in requests for i in range(r.feeds)]


def in_range(ids: list[list[int]]) -> bool:
    return all(0 <= row < lite.NGRAM_TOTAL_ROWS for token in ids for row in token)


@pytest.mark.parametrize(
    ("width", "dtype"), [(1, torch.int32), (2, torch.int64), (4, torch.int32), (13, torch.int64)]
)
def test_a_window_sees_the_ring_and_appends_to_it(
    device: str, width: int, dtype: torch.dtype
) -> None:
    starts = {1: 0, 3: 2, 4: 15, 7: LAST - width + 1}
    requests = [make_request(slot, width, start=start) for slot, start in starts.items()]
    cache = Cache(device)
    cache.seed(requests)
    want = cache.ring.clone()
    *ids, pad_1, pad_2 = cache.window(requests, padding=2, dtype=dtype)
    assert ids == [expected(request) for request in requests]
    assert in_range(pad_1 + pad_2)
    for request in requests:
        for i, token in enumerate(request.text[-width:]):
            want[request.slot, (request.start + i) % lite.RING] = token
    assert torch.equal(cache.ring[1:], want[1:])


def test_a_rejected_draft_leaves_no_trace(device: str) -> None:
    cache, text = Cache(device), [9, 8, 7]
    cache.extend([Request(1, text[:2], 2)])  # the prompt's last token is fed with the first drafts
    for step, accepted in enumerate([0, 12, 5, 1, 0, 12, 12, 3]):
        drafts = make_request(1, 12, start=0, seed=step).text
        verify = Request(1, text + drafts, 13)
        assert cache.window([verify])[0] == expected(verify)
        text = [*text, *drafts[:accepted], 100 + step]


def test_a_window_that_does_not_fit_the_ring_is_refused(device: str) -> None:
    with pytest.raises(
        ValueError, match="14 tokens does not fit the ring of 16: expected at most 13"
    ):
        Cache(device).window([make_request(1, 14, start=0)])


def test_a_ragged_prefill_longer_than_the_ring_then_a_decode(device: str) -> None:
    shapes = {2: (1, 0), 5: (50, 0), 1: (3, 7), 7: (16, LAST - 16), 3: (17, 1), 4: (2, 163_840)}
    requests = [make_request(slot, feeds, start=at) for slot, (feeds, at) in shapes.items()]
    cache = Cache(device)
    cache.seed(requests)
    count = sum(request.feeds for request in requests)
    ids = cache.extend(requests, padding=5, dtype=torch.int32)
    assert ids[:count] == [row for request in requests for row in expected(request)]
    assert in_range(ids[count:])
    decodes = [r._replace(text=[*r.text, LARGEST], feeds=1) for r in requests]
    assert cache.window(decodes) == [expected(request) for request in decodes]


def test_a_prefill_of_nothing_and_empty_requests(device: str) -> None:
    cache = Cache(device)
    before = cache.ring.clone()
    assert cache.extend([]) == []
    assert torch.equal(cache.ring, before)
    some = make_request(2, 4, start=0)
    requests = [Request(1, [], 0), some, Request(3, [], 0)]
    assert cache.extend(requests) == expected(some)
    assert torch.equal(cache.ring[[1, 3]], before[[1, 3]])


@pytest.mark.parametrize("eos", [(EOS,), (EOS, LARGEST), (0, 1, EOS)], ids=str)
@pytest.mark.parametrize("step", ["extend", "window"])
def test_every_pattern_of_eos_within_reach(device: str, step: str, eos: tuple[int, ...]) -> None:
    seen = itertools.product([EOS, LARGEST, 0], repeat=lite.NGRAM_N - 1)  # in the ring
    texts = [[*predecessors, token] for predecessors in seen for token in (EOS, 31)]
    requests = [Request(slot, text, 1) for slot, text in enumerate(texts, start=1)]
    cache = Cache(device, slots=len(requests) + 1, eos=eos)
    cache.seed(requests)
    ids = cache.window(requests) if step == "window" else [[row] for row in cache.extend(requests)]
    assert ids == [expected(request, eos) for request in requests]


def test_every_pattern_of_eos_within_one_batch(device: str) -> None:
    patterns = list(itertools.product([EOS, 31], repeat=5))
    requests = [Request(slot, list(text), 5) for slot, text in enumerate(patterns, start=1)]
    cache = Cache(device, slots=len(requests) + 1)
    assert cache.extend(requests) == [row for request in requests for row in expected(request)]


def test_the_largest_ids(device: str) -> None:
    request = Request(1, [LARGEST] * 8, 8)
    assert Cache(device).extend([request]) == expected(request)


def test_two_orders_of_feeding_agree_at_the_benchmark_shapes(device: str) -> None:
    """One prefill of W tokens equals a window of W, on the inputs the benchmarks time."""
    inputs = workloads.make_inputs([4] * 9, seed=1, device=device)
    params = workloads.lite_params(device)
    ring, other_ring = inputs.ring.clone(), inputs.ring.clone()
    window = ngram.window_ids(inputs.window, ring, params)
    extend = ngram.extend_ids(inputs.prefill, other_ring, params)
    assert torch.equal(window, extend)
    assert torch.equal(ring[1:], other_ring[1:])
    assert not torch.equal(ring[1:], inputs.ring[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1, 4])
def test_a_captured_step_follows_its_inputs(width: int) -> None:
    """Eight replays of one graph: growing texts, then other slots, with padding rows throughout."""
    cache, rows, padding = Cache("cuda"), 3, 2
    tokens = torch.zeros((rows + padding) * width, dtype=torch.int64, device="cuda")
    positions, slots = torch.zeros_like(tokens), tokens.new_zeros(rows + padding)
    window = Window(tokens, positions, slots)
    ngram.window_ids(window, cache.ring, cache.params)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = ngram.window_ids(window, cache.ring, cache.params)
    for first_slot in (1, 5):
        requests = [make_request(first_slot + i, 5 + 20 * i, start=0) for i in range(rows)]
        cache.extend(requests)
        for step in range(4):
            requests = [
                r._replace(
                    text=r.text + make_request(r.slot, width, start=0, seed=step).text, feeds=width
                )
                for r in requests
            ]
            new_tokens, new_positions = _flat(requests)
            tokens[: rows * width] = cache.on(new_tokens)
            positions[: rows * width] = cache.on(new_positions)
            slots[:rows] = cache.on([r.slot for r in requests])
            graph.replay()
            got = ids.view(-1, width, lite.NGRAM_TABLES)[:rows].tolist()
            assert got == [expected(request) for request in requests]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", workloads.DECODE_BATCHES)
def test_every_decode_batch_in_a_graph_with_changing_padding(batch: int) -> None:
    """At the model's own sizes, exact against the torch reference; rows past `live` are padding."""
    static, params = (
        workloads.make_inputs([1] * batch, seed=0, device="cuda"),
        workloads.lite_params("cuda"),
    )
    ngram.window_ids(static.window, static.ring, params)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = ngram.window_ids(static.window, static.ring, params)
    for seed, live in enumerate({batch, max(1, batch // 3), max(1, batch - 1)}, start=1):
        fresh = workloads.make_inputs([1] * batch, seed=seed, device="cuda")
        for padded in (fresh.tokens, fresh.positions, fresh.slots):
            padded[live:] = 0
        for name in ("tokens", "positions", "slots", "ring"):
            getattr(static, name).copy_(getattr(fresh, name))
        graph.replay()
        want = ngram.reference.window_ids(fresh.window, fresh.ring, params)
        assert torch.equal(ids[:live], want[:live])
        assert torch.equal(static.ring[1:], fresh.ring[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[8192], [1024] * 8, [1, 2, 3, 4, 5000, 3182]], ids=str)
def test_prefills_of_8192_tokens(lengths: list[int]) -> None:
    inputs, params = (
        workloads.make_inputs(lengths, seed=3, device="cuda"),
        workloads.lite_params("cuda"),
    )
    other = inputs.ring.clone()
    want = ngram.reference.extend_ids(inputs.prefill, other, params)
    assert torch.equal(ngram.extend_ids(inputs.prefill, inputs.ring, params), want)
    assert torch.equal(inputs.ring[1:], other[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("width", [2, 4, 8, 13])
def test_thousands_of_verifications_in_a_graph(width: int) -> None:
    """64 requests draft, keep a random prefix and go on, 40 times in one graph: 2,560 windows of
    each width against the whole text. Red if a rejected draft is ever read."""
    rows, rng = 64, random.Random(width)
    cache, texts = Cache("cuda", slots=rows + 1), [[7 + i] for i in range(rows)]
    tokens = torch.zeros(rows * width, dtype=torch.int64, device="cuda")
    positions, slots = torch.zeros_like(tokens), torch.arange(1, rows + 1, device="cuda")
    window = Window(tokens, positions, slots)
    ngram.window_ids(window, cache.ring, cache.params)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = ngram.window_ids(window, cache.ring, cache.params)
    for step in range(40):
        drafts = [make_request(i + 1, width - 1, start=0, seed=step).text for i in range(rows)]
        windows = [
            Request(i + 1, text + draft, width)
            for i, (text, draft) in enumerate(zip(texts, drafts))
        ]
        fed, at = _flat(windows)
        tokens.copy_(cache.on(fed))
        positions.copy_(cache.on(at))
        graph.replay()
        assert ids.view(rows, width, -1).tolist() == [expected(window) for window in windows]
        for text, draft in zip(texts, drafts):
            text += [*draft[: rng.randrange(width)], rng.choice((*TOKENS, 4711))]


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu() -> None:
    inputs, params = (
        workloads.make_inputs([3, 40], seed=2, device="cuda"),
        workloads.lite_params("cuda"),
    )
    window = workloads.make_inputs([4, 4], seed=2, device="cuda")

    def step() -> None:
        ngram.seed(inputs.ring, inputs.slots, inputs.positions[:2], inputs.tokens[:2])
        ngram.extend_ids(inputs.prefill, inputs.ring, params)
        ngram.window_ids(window.window, window.ring, params)

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
