"""The oracle's n-gram ids against a slow definition in unbounded Python integers.

Owns: the hash and the EOS rule, up to the published sizes. The embedding built on the ids is
compared with transformers in tests/model/test_reference.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sglang_longcat.config import NgramConfig
from sglang_longcat.reference import ngram_ids

SMALL = NgramConfig(n=3, k=2, vocab_size=10, rows_base=40, hidden_size=8)
PUBLISHED = NgramConfig(n=4, k=4, vocab_size=131072, rows_base=78 * 131072, hidden_size=3072)
EOS = 2


def slow_id(tokens: list[int], t: int, order: int, vocab: int, modulus: int, eos: set[int]) -> int:
    """Walk back from t, with no power reduced early, no vectors and no fixed-width integers."""
    total = tokens[t]
    for p in range(1, order):
        if t - p < 0 or tokens[t - p] in eos:
            break
        total += tokens[t - p] * vocab**p
    return total % modulus


def slow_ids(tokens: list[int], config: NgramConfig, eos: tuple[int, ...]) -> list[list[int]]:
    return [
        [
            slow_id(tokens, t, 2 + i // config.k, config.vocab_size, rows, set(eos))
            for i, rows in enumerate(config.rows)
        ]
        for t in range(len(tokens))
    ]


def test_a_hand_worked_example() -> None:
    # 4 tables: orders 2, 2, 3, 3 and moduli 41, 43, 45, 47. Token 2 ends a text.
    ids = ngram_ids(torch.tensor([7, 9, EOS, 5, 3]), SMALL, (EOS,))
    assert ids.tolist() == [
        [7, 7, 7, 7],
        [79 % 41, 79 % 43, 79 % 45, 79 % 47],  # 9 + 7 * 10
        [92 % 41, 92 % 43, 792 % 45, 792 % 47],  # the EOS itself sees 9 and 7
        [5, 5, 5, 5],  # the token after the EOS sees nothing before it
        [53 % 41, 53 % 43, 53 % 45, 53 % 47],  # and neither does the next token
    ]


@st.composite
def prompts(draw: st.DrawFn, vocab: int) -> list[int]:
    token = st.one_of(st.integers(0, vocab - 1), st.sampled_from([0, EOS, vocab - 1]))
    return draw(st.lists(token, min_size=1, max_size=24))


@settings(deadline=None, max_examples=80)
@given(tokens=prompts(vocab=131072))
@example(tokens=[131071] * 6)  # the largest sums: beyond 2**41 before the modulus
@example(tokens=[5, EOS, EOS, 6, 7, EOS])
def test_published_sizes(tokens: list[int]) -> None:
    got = ngram_ids(torch.tensor(tokens), PUBLISHED, (EOS,))
    assert got.dtype == torch.int64
    assert got.tolist() == slow_ids(tokens, PUBLISHED, (EOS,))


@settings(deadline=None, max_examples=80)
@given(tokens=prompts(vocab=10), n=st.integers(2, 5), k=st.integers(1, 3), data=st.data())
def test_other_shapes_and_several_eos(
    tokens: list[int], n: int, k: int, data: st.DataObject
) -> None:
    config = NgramConfig(n=n, k=k, vocab_size=10, rows_base=35, hidden_size=(n - 1) * k)
    eos = tuple(data.draw(st.sets(st.integers(0, 9), max_size=3)))
    assert ngram_ids(torch.tensor(tokens), config, eos).tolist() == slow_ids(tokens, config, eos)


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_an_eos_hides_itself_and_what_precedes_it(distance: int) -> None:
    after = [11, 12, 13][:distance]
    cut = ngram_ids(torch.tensor([8, 9, EOS, *after]), PUBLISHED, (EOS,))
    fresh = ngram_ids(torch.tensor(after), PUBLISHED, (EOS,))
    assert cut[-distance:].tolist() == fresh.tolist()
