"""Any schedule of prefills, decodes, verifications and retractions hashes like the whole text.

Owns: a scheduler in small, with the rules the ring and `collect_seeds` are used by: a forward's
prefill is seeded unless the request is decoding, sampled tokens enter the ring when they are fed, a
slot is reused at once, padded rows point at slot 0. Expected ids come from the stateless oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from longcat_kernels.ngram import Prefill, Window, extend_ids, make_hash_params, seed, window_ids
from sglang_longcat.config import NgramConfig
from sglang_longcat.ngram.cache import RING
from sglang_longcat.ngram.seeds import collect_seeds
from sglang_longcat.reference import ngram_ids

LITE = NgramConfig(n=4, k=4, vocab_size=131072, rows_base=78 * 131072, hidden_size=3072)
WIDEST = 13
SLOTS = 4


@dataclass(eq=False)
class Request:
    """text[:fed] went through the model; text holds at least one token more."""

    text: list[int]
    slot: int
    fed: int
    prompt: int = 0  # decoding starts once this many tokens are fed

    # What collect_seeds reads of SGLang's request.
    kv: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        self.place(self.slot, self.fed)

    def place(self, slot: int, fed: int) -> None:
        self.slot, self.fed, self.prompt = slot, fed, len(self.text)
        self.kv = SimpleNamespace(req_pool_idx=slot)

    @property
    def full_untruncated_fill_ids(self) -> list[int]:
        """While decoding, the token fed last has not reached the host yet."""
        return self.text[: self.fed - 1] if self.decoding else self.text

    @property
    def decoding(self) -> bool:
        return self.fed >= self.prompt


class Schedules(RuleBasedStateMachine):
    @initialize(eos=st.sampled_from([(2,), (2, 131071), (0, 2)]), source=st.integers(0, 2**32))
    def start(self, eos: tuple[int, ...], source: int) -> None:
        self.eos, self.random = eos, Random(source)
        self.params = make_hash_params(
            vocab_size=LITE.vocab_size,
            rows=LITE.rows,
            orders=tuple(LITE.order(i) for i in range(LITE.tables)),
            eos=eos,
            device="cpu",
        )
        # Whatever an earlier owner left: cells that must never be taken for this request's tokens.
        self.ring = torch.tensor(self.tokens((SLOTS + 1) * RING), dtype=torch.int32)
        self.ring = self.ring.view(SLOTS + 1, RING)
        self.free = list(range(1, SLOTS + 1))  # last in, first out, as SGLang's pool
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.admit(length=8, cached=5)

    def tokens(self, count: int) -> list[int]:
        special = (*self.eos, 0, 1, 131071)
        return [
            self.random.choice(special)
            if self.random.random() < 0.25
            else self.random.randrange(131072)
            for _ in range(count)
        ]

    # Admission and release

    @precondition(lambda self: self.free)
    @rule(length=st.integers(1, 60), cached=st.integers(0, 59))
    def admit(self, length: int, cached: int) -> None:
        """The radix cache holds the first `cached` tokens: they are never fed in this slot."""
        self.running.append(
            Request(self.tokens(length), self.free.pop(), fed=min(cached, length - 1))
        )

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, SLOTS - 1))
    def retract(self, which: int) -> None:
        self.waiting.append(self.release(which))

    @precondition(lambda self: self.waiting and self.free)
    @rule(cached=st.integers(0, 200))
    def resume(self, cached: int) -> None:
        request = self.waiting.pop(0)
        request.place(self.free.pop(), fed=min(cached, len(request.text) - 1))
        self.running.append(request)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, SLOTS - 1))
    def finish(self, which: int) -> None:
        self.release(which)

    def release(self, which: int) -> Request:
        request = self.running.pop(which % len(self.running))
        self.free.append(request.slot)
        return request

    # Forwards

    @precondition(lambda self: any(not request.decoding for request in self.running))
    @rule(chunk=st.integers(1, 40), mixed=st.booleans(), padding=st.integers(0, 3))
    def prefill(self, chunk: int, mixed: bool, padding: int) -> None:
        """One chunk of every prompt; decoding requests come along with one token each if mixed."""
        prompts = [request for request in self.running if not request.decoding]
        decodes = [request for request in self.running if request.decoding and mixed]
        batch = prompts + decodes
        counts = [min(chunk, r.prompt - r.fed) for r in prompts] + [1] * len(decodes)
        self.seed(batch, decodes)
        tokens, positions = self.fed_by(batch, counts)
        lengths = torch.tensor(counts)
        prefill = Prefill(
            torch.cat((tokens, tokens.new_zeros(padding))),
            torch.cat((positions, positions.new_zeros(padding))),
            torch.tensor([request.slot for request in batch]),
            lengths.cumsum(0) - lengths,
            lengths,
        )
        ids = extend_ids(prefill, self.ring, self.params)
        self.check(batch, counts, ids[: len(tokens)])
        for request, count in zip(batch, counts, strict=True):
            self.advance(request, count)

    @precondition(lambda self: any(request.decoding for request in self.running))
    @rule(padding=st.integers(0, 2))
    def decode(self, padding: int) -> None:
        batch = [request for request in self.running if request.decoding]
        self.window(batch, 1, padding)
        for request in batch:
            self.advance(request, 1)

    @precondition(lambda self: any(request.decoding for request in self.running))
    @rule(width=st.integers(2, WIDEST), accepted=st.integers(0, WIDEST), padding=st.integers(0, 2))
    def verify(self, width: int, accepted: int, padding: int) -> None:
        """Every request drafts width-1 tokens; a prefix of them is kept, the rest never was."""
        batch = [request for request in self.running if request.decoding]
        for request in batch:
            request.text += self.tokens(width - 1)
        self.window(batch, width, padding)
        for i, request in enumerate(batch):
            kept = 1 + (accepted + i) % width
            del request.text[request.fed + kept :]
            self.advance(request, kept)

    # Their parts

    def seed(self, batch: list[Request], decodes: list[Request]) -> None:
        mode = SimpleNamespace(is_extend_without_speculative=lambda: True)
        seeds = collect_seeds(
            SimpleNamespace(
                forward_mode=mode,
                reqs=batch,
                decoding_reqs=decodes or None,
                prefix_lens=[request.fed for request in batch],
            ),
            LITE.n,
        )
        if seeds is not None:
            slots, positions, tokens = seeds.values
            seed(self.ring, slots, positions, tokens)

    def window(self, batch: list[Request], width: int, padding: int) -> None:
        tokens, positions = self.fed_by(batch, [width] * len(batch))
        window = Window(
            torch.cat((tokens, tokens.new_zeros(padding * width))),
            torch.cat((positions, positions.new_zeros(padding * width))),
            torch.tensor([request.slot for request in batch] + [0] * padding),
        )
        ids = window_ids(window, self.ring, self.params)
        self.check(batch, [width] * len(batch), ids[: len(tokens)])

    def fed_by(self, batch: list[Request], counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        spans = [(r, range(r.fed, r.fed + count)) for r, count in zip(batch, counts, strict=True)]
        tokens = [request.text[p] for request, span in spans for p in span]
        return torch.tensor(tokens), torch.tensor([p for _, span in spans for p in span])

    def check(self, batch: list[Request], counts: list[int], ids: torch.Tensor) -> None:
        for request, count, got in zip(batch, counts, ids.split(counts), strict=True):
            text = torch.tensor(request.text[: request.fed + count])
            want = ngram_ids(text, LITE, self.eos)[request.fed :] + self.params.offsets
            assert torch.equal(got, want), f"slot {request.slot}, positions from {request.fed} on"

    def advance(self, request: Request, count: int) -> None:
        """Once everything known is fed, the model samples a token."""
        request.fed += count
        if request.fed == len(request.text):
            request.text += self.tokens(1)


Schedules.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSchedules = Schedules.TestCase
