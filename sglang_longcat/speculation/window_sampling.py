"""Penalties and min_p for a speculative window, so that it samples as single steps would.

Owns: the arithmetic, in torch. `hooks/verify_sampling` reads SGLang's batch for it. A window has B
requests of N tokens each: the token that is already decided, at position `starts`, then the drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Penalties:
    """What each request asks for, [B, 1] fp32 each. at_least: tokens before a stop is allowed."""

    frequency: Tensor
    presence: Tensor
    repetition: Tensor
    at_least: Tensor


class RecentTokens:
    """The tokens of each request's last two windows, by position. The overlap scheduler launches a
    step before the host has read the step before it, so the host's list may lack them. Rejected
    drafts are overwritten, or not read."""

    def __init__(self, slots: int, window: int, device: torch.device) -> None:
        self.table = torch.zeros(slots, 2 * window, dtype=torch.int64, device=device)

    def write(self, slots: Tensor, starts: Tensor, tokens: Tensor) -> None:
        """slots, starts: [B]; tokens: [B, N], at positions starts .. starts + N - 1."""
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        self.table[slots[:, None], (starts[:, None] + ahead) % self.table.shape[1]] = tokens

    def read(self, slots: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, N] and positions [B, N] of the N positions just before `starts`."""
        width = self.table.shape[1]
        behind = torch.arange(width // 2, 0, -1, device=starts.device)
        positions = starts[:, None] - behind
        return self.table[slots[:, None], positions % width], positions


def count_output(
    vocab: int, outputs: Sequence[Sequence[int]], prompts: Sequence[int], starts: Tensor
) -> tuple[Tensor, Tensor]:
    """How often each request has generated each token before `starts` [B], from the outputs that
    the host knows: counts [B, vocab] fp32, and the first position that the host does not know [B].

    prompts: lengths. The host may know more than `starts` (no overlap) or less (overlap)."""
    device = starts.device
    rows = [row for row, output in enumerate(outputs) for _ in output]
    places = [p + i for p, output in zip(prompts, outputs) for i in range(len(output))]
    flat = [token for output in outputs for token in output]
    row, place, token = torch.tensor([rows, places, flat], dtype=torch.int64).to(device)
    counts = torch.zeros(len(outputs), vocab, device=device)
    counts.index_put_((row, token), (place < starts[row]).float(), accumulate=True)
    known = [p + len(output) for p, output in zip(prompts, outputs)]
    return counts, torch.tensor(known, device=device)


def add_recent(counts: Tensor, known: Tensor, tokens: Tensor, positions: Tensor) -> None:
    """Add the tokens of `RecentTokens.read` whose positions the host does not know."""
    counts.scatter_add_(1, tokens, (positions >= known[:, None]).to(counts.dtype))


def penalize(
    logits: Tensor,
    counts: Tensor,
    window: Tensor,
    told: Tensor,
    stops: Tensor,
    penalties: Penalties,
) -> None:
    """Change logits [B, N, vocab] in place: row j counts all tokens up to window[:, j].

    l -= frequency * count + presence * [count > 0]; l = -inf for `stops` [B, vocab] while fewer
    than at_least tokens are generated; then, for tokens generated before, l /= repetition where
    l > 0 and l *= repetition elsewhere. counts [B, vocab] and told [B] (how many tokens) are those
    before the window; `counts` is changed too.
    """
    for j in range(window.shape[1]):
        counts.scatter_add_(1, window[:, j : j + 1], torch.ones_like(counts[:, :1]))
        generated, row = counts > 0, logits[:, j]
        row -= penalties.frequency * counts + penalties.presence * generated
        row.masked_fill_(stops & (told[:, None] + j + 1 < penalties.at_least), float("-inf"))
        scale = torch.where(generated, penalties.repetition, 1.0)
        row.copy_(torch.where(row > 0, row / scale, row * scale))


def is_unlikely(probs: Tensor, min_p: Tensor) -> Tensor:
    """[T, vocab] bool: where probs [T, vocab] is 0, or below min_p [T] times the row's largest."""
    return (probs <= 0) | (probs < probs.amax(dim=1, keepdim=True) * min_p[:, None])
