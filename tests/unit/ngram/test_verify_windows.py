"""Verification of draft chains, whatever is accepted: the cache's ids are those of the whole text.

Owns: windows as SGLang's TARGET_VERIFY forwards bring them to `NgramCache`, at the model's own
sizes. `test_cache.py` covers the op underneath in every other mode.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from random import Random

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.config import LongcatConfig, NgramConfig
from sglang_longcat.ngram.cache import NgramCache
from sglang_longcat.ngram.seeds import Seeds
from sglang_longcat.reference import ngram_ids

LITE = json.loads(PUBLISHED_CONFIG.read_text())
EOS = (2, 131071)
SLOTS, PADDING, WINDOWS = 5, 2, 100
FAR = 327_600  # a prompt that was computed elsewhere, just before the last position


@dataclass
class Slot:
    """text[:fed] went through the model, at positions from `first` on; one token more is known."""

    number: int
    text: list[int]
    fed: int
    first: int = 0


class Verifier:
    """Requests in slots 1 to SLOTS whose windows all have `width` tokens."""

    def __init__(self, width: int, *, seed: int) -> None:
        config = LongcatConfig.from_dict({**LITE, "eos_token_id": list(EOS)})
        assert isinstance(config.ngram, NgramConfig)
        self.width, self.ngram = width, config.ngram
        self.random = Random(f"{seed} {width}")
        self.cache = NgramCache(config, torch.device("cpu"))
        self.cache.allocate(SLOTS + 1)
        self.offsets = self.cache.hash.offsets
        self.slots = [self.admit(number) for number in range(1, SLOTS + 1)]
        self.accepted: Counter[int] = Counter()

    def tokens(self, count: int) -> list[int]:
        """One in four is an EOS or at the edge of the vocabulary."""
        edges = (*EOS, 0, 1)
        draw = self.random
        return [
            draw.choice(edges) if draw.random() < 0.25 else draw.randrange(131_072)
            for _ in range(count)
        ]

    def admit(self, number: int) -> Slot:
        """A prompt of which a prefix came from elsewhere: seeded; the rest is fed, and a token
        sampled. Now and then it ends near the longest context."""
        first = self.random.choice([0, 0, FAR])
        slot = Slot(number, self.tokens(self.random.randint(2, 40)), fed=0, first=first)
        slot.fed = self.random.randrange(len(slot.text))
        known = range(max(0, slot.fed - self.ngram.n + 1), slot.fed)
        if known:
            entries = [(number, first + p, slot.text[p]) for p in known]
            self.cache.seed(Seeds(torch.tensor(entries).t().contiguous()))
        count = len(slot.text) - slot.fed
        self.forward(ForwardMode.EXTEND, [slot], count)
        slot.fed += count
        slot.text += self.tokens(1)
        return slot

    def verify(self) -> None:
        """Every request drafts; a random prefix of each draft is kept, then a token is sampled."""
        for slot in self.slots:
            slot.text += self.tokens(self.width - 1)
        self.forward(ForwardMode.TARGET_VERIFY, self.slots, self.width)
        for slot in self.slots:
            kept = self.random.randint(1, self.width)
            self.accepted[kept] += 1
            slot.fed += kept
            slot.text[slot.fed :] = self.tokens(1)

    def renew(self) -> None:
        """Requests that ended: their slots, full of their rejected drafts, go to others."""
        for i, slot in enumerate(self.slots):
            if len(slot.text) > 60 or self.random.random() < 0.05:
                self.slots[i] = self.admit(slot.number)

    def forward(self, mode: ForwardMode, slots: list[Slot], count: int) -> None:
        """`count` tokens of each slot; padded rows, as CUDA graphs have them, feed zeros to 0."""
        padding = PADDING if mode == ForwardMode.TARGET_VERIFY else 0
        fed = [slot.text[slot.fed : slot.fed + count] for slot in slots]
        places = [range(slot.first + slot.fed, slot.first + slot.fed + count) for slot in slots]
        empty = [[0] * count] * padding
        batch = ForwardBatch(
            forward_mode=mode,
            batch_size=len(slots) + padding,
            input_ids=torch.tensor([token for row in (*fed, *empty) for token in row]),
            positions=torch.tensor([p for row in (*places, *empty) for p in row]),
            req_pool_indices=torch.tensor([slot.number for slot in slots] + [0] * padding),
            seq_lens=torch.tensor([row[0] for row in places] + [1] * padding),
            seq_lens_sum=0,
            out_cache_loc=torch.zeros((len(slots) + padding) * count, dtype=torch.int64),
        )
        if mode == ForwardMode.EXTEND:
            batch.extend_start_loc = torch.tensor([0], dtype=torch.int32)
            batch.extend_seq_lens = torch.tensor([count], dtype=torch.int32)
        ids = self.cache.ids(batch.input_ids, batch)
        for slot, got in zip(slots, ids.split(count)):
            self.check(slot, count, got)

    def check(self, slot: Slot, count: int, got: torch.Tensor) -> None:
        """Against the oracle on the whole text. One that starts far out has nothing seen before
        `first`, so its first tokens are fed here only if they see n-1 others."""
        text = torch.tensor(slot.text[: slot.fed + count])
        want = ngram_ids(text, self.ngram, EOS)[slot.fed :] + self.offsets
        skip = max(0, self.ngram.n - 1 - slot.fed) if slot.first else 0
        assert torch.equal(got[skip:], want[skip:]), f"slot {slot.number} after {slot.fed} tokens"


@pytest.mark.parametrize("width", range(2, 9))
def test_random_accept_patterns(width: int) -> None:
    """Red if a rejected draft stays visible to a later window or to the slot's next owner, if an
    accepted one does not, or if a padded row disturbs a request. 3,500 windows over all widths."""
    verifier = Verifier(width, seed=1)
    for _ in range(WINDOWS):
        verifier.verify()
        verifier.renew()
    assert set(verifier.accepted) == set(range(1, width + 1))
    assert verifier.accepted.total() == WINDOWS * SLOTS
