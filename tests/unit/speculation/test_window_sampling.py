"""Penalties and min_p over a window, against one token after the other."""

from __future__ import annotations

import torch

from sglang_longcat.speculation.window_sampling import (
    Penalties,
    RecentTokens,
    add_recent,
    count_output,
    is_unlikely,
    penalize,
)

VOCAB, N = 12, 3


def test_what_the_host_does_not_know_comes_from_the_last_windows() -> None:
    """Two requests, windows at two steps: the host is a step behind on the first and up to date,
    the decided token included, on the second. A rejected draft (10) is not counted."""
    recent = RecentTokens(slots=4, window=N, device=torch.device("cpu"))
    slots = torch.tensor([3, 1])
    recent.write(slots, torch.tensor([5, 4]), torch.tensor([[1, 2, 10], [5, 10, 10]]))
    starts = torch.tensor([7, 5])  # one draft accepted, none
    outputs = [[1], [5, 6]]  # prompts of 5 and 4 tokens: positions 5; 4 and 5
    counts, known = count_output(VOCAB, outputs, [5, 4], starts)
    assert known.tolist() == [6, 6]
    add_recent(counts, known, *recent.read(slots, starts))
    assert [row.nonzero()[:, 0].tolist() for row in counts] == [[1, 2], [5]]
    assert counts.sum().item() == 3
    nothing, known = count_output(VOCAB, [[]], [5], torch.tensor([5]))
    assert nothing.sum().item() == 0
    assert known.tolist() == [5]


def test_a_window_is_penalised_as_single_steps_are() -> None:
    torch.manual_seed(0)
    logits, window = torch.randn(2, N, VOCAB), torch.tensor([[4, 4, 7], [1, 2, 1]])
    said = [[7, 7], [1, 3]]
    requested = [(1.5, 0.25, 1.0, 0), (0.0, 0.0, 1.5, 5)]
    stops = torch.zeros(2, VOCAB, dtype=torch.bool)
    stops[:, 9] = True
    counts = torch.stack(
        [torch.tensor(tokens).bincount(minlength=VOCAB).float() for tokens in said]
    )
    got = logits.clone()
    told = torch.tensor([2, 2])
    penalize(got, counts, window, told, stops, Penalties(*torch.tensor(requested).split(1, dim=1)))
    for i, (frequency, presence, repetition, at_least) in enumerate(requested):
        for j in range(N):
            before = said[i] + window[i, : j + 1].tolist()
            want = logits[i, j].clone()
            for token in set(before):
                want[token] -= frequency * before.count(token) + presence
                want[token] *= 1 / repetition if want[token] > 0 else repetition
            if len(before) < at_least:
                want[9] = -torch.inf
            torch.testing.assert_close(got[i, j], want)
    assert got.isinf().sum().item() == 2  # of the second request: after 3 and 4 tokens


def test_min_p() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.5, 0.3, 0.2, 0.0]])
    unlikely = is_unlikely(probs, torch.tensor([0.5, 0.0]))
    assert unlikely.tolist() == [[False, False, True, True], [False, False, False, True]]
