"""All conversations, turn by turn: none begins a turn before all have ended the one before.

So every conversation is alive until the end, as agents are that wait for their tools, and the cache
must hold all of them to reuse all of them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from benchmarks.conversations import client, turns

FIRST_WORD = 30  # below lie the special tokens


@dataclass(frozen=True)
class Sizes:
    """`users` of the conversations are answered at once. first, user, answer: tokens of the first
    prompt, of what a later turn adds to it, and of each answer."""

    conversations: int
    turns: int
    first: int
    user: int
    answer: int
    users: int

    @property
    def longest(self) -> int:
        """Tokens of a conversation after its last turn."""
        return self.first + (self.turns - 1) * self.user + self.turns * self.answer

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Conversation:
    """Random words, the same for the same seed. Each answer ends with EOS, as in the chat template,
    and then the user's words follow."""

    def __init__(self, seed: int, sizes: Sizes, *, words: int, eos: int) -> None:
        self._draw, self._words, self._eos = random.Random(seed), words, eos
        self._sizes = sizes
        self.tokens = self._some(sizes.first)

    def _some(self, count: int) -> list[int]:
        return [self._draw.randrange(FIRST_WORD, self._words) for _ in range(count)]

    def answered(self, output: list[int]) -> None:
        self.tokens += [*output, self._eos, *self._some(self._sizes.user - 1)]


def play(url: str, sizes: Sizes, *, words: int, eos: int, seed: int = 0) -> Iterator[turns.Row]:
    """A row after each turn. words: size of the vocabulary. Raises client.TurnError."""
    seeds = range(seed, seed + sizes.conversations)
    everybody = [Conversation(each, sizes, words=words, eos=eos) for each in seeds]
    reusable = 0  # tokens, of all conversations
    for turn in range(1, sizes.turns + 1):
        begin = time.perf_counter()
        replies = asyncio.run(one_turn(url, everybody, sizes))
        seconds = time.perf_counter() - begin
        yield turns.row(turn, replies, seconds=seconds, reusable=reusable)
        reusable = sum(reply.prompt_tokens + len(reply.output) for reply in replies)


async def one_turn(url: str, everybody: list[Conversation], sizes: Sizes) -> list[client.Reply]:
    free = asyncio.Semaphore(sizes.users)
    async with client.new_session() as session:

        async def one(conversation: Conversation) -> client.Reply:
            async with free:
                reply = await client.ask(session, url, conversation.tokens, sizes.answer)
            conversation.answered(reply.output)
            return reply

        return await asyncio.gather(*map(one, everybody))
