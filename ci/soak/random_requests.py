"""The random requests of `ci.soak` and the verdict on each answer.

Owns: what is asked (prompts that share beginnings, some EOS tokens, lengths, stop tokens,
priorities, aborts and disconnects) and what a correct answer is. The same seed draws the same
requests, but which of them meet in the scheduler depends on the machine. `client` does the HTTP.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sglang_longcat.reference import ReferenceModel

BOS, EOS = 1, 2
LONGEST_PROMPT, LONGEST_OUTPUT = 150, 40
# Difference of two logits up to which either token is right: fp32 sums in another order differ by
# 3e-5.
TIE = 1e-4

Ending = Literal["", "abort", "disconnect"]


@dataclass(frozen=True)
class Request:
    """One call of /generate. If it still runs after `patience` seconds, `ending` happens to it."""

    rid: str
    prompt: list[int]
    new: int
    copies: int
    stops: list[int]
    priority: int
    stream: bool
    delay: float  # seconds after its wave began
    ending: Ending
    patience: float

    def body(self) -> dict[str, Any]:
        sampling = {"temperature": 0, "max_new_tokens": self.new, "n": self.copies}
        return {
            "rid": self.rid,
            "input_ids": self.prompt,
            "sampling_params": sampling | {"stop_token_ids": self.stops},
            "priority": self.priority,
            "stream": self.stream,
        }


class Draw:
    """Requests from one seed, over a dozen stems whose beginnings the prompts share."""

    def __init__(self, seed: str, *, vocab: int) -> None:
        self._seed, self._vocab, self._count = seed, vocab, 0
        self._random = random.Random(seed)
        self._stems = [self._stem() for _ in range(12)]

    def wave(self, size: int) -> list[Request]:
        return [self._request() for _ in range(size)]

    def _request(self) -> Request:
        draw = self._random
        self._count += 1
        copies = draw.choice([1, 1, 1, 1, 1, 1, 1, 2, 3])
        # No abort with several samples: SGLang gives them names that a client does not know.
        endings: list[Ending] = ["", "", "disconnect", "abort" if copies == 1 else ""]
        return Request(
            # The number has six digits, because SGLang compares the beginnings of names: an abort
            # of "1" would also end "10".
            rid=f"{self._seed}-{self._count:06}",
            prompt=self._prompt(),
            new=draw.choice([LONGEST_OUTPUT, draw.randint(1, LONGEST_OUTPUT)]),
            copies=copies,
            stops=draw.sample(range(3, self._vocab), draw.choice([0, 1, 40])),
            priority=draw.randrange(4),
            stream=copies == 1 and draw.random() < 0.5,
            delay=draw.choice([0.1, 0.1, 2]) * draw.random(),
            ending=draw.choice(["", *endings]),
            patience=draw.choice([0, 0.3, 2, 5]) * draw.random(),
        )

    def _prompt(self) -> list[int]:
        """The beginning of a stem and a few tokens; one time in six, new tokens only."""
        draw = self._random
        if draw.random() < 1 / 6:
            return self._tokens(draw.randint(1, LONGEST_PROMPT))
        stem = draw.choice(self._stems)
        head = stem[: draw.randint(1, len(stem))]
        room = LONGEST_PROMPT - len(head)
        return head + self._tokens(min(room, draw.choice([0, 1, 2, 3, draw.randint(4, 40)])))

    def _stem(self) -> list[int]:
        return [BOS, *self._tokens(self._random.randint(3, 119))]

    def _tokens(self, count: int) -> list[int]:
        """Ordinary tokens; in half of all calls, each is an EOS with a chance of one in eight."""
        draw, chance = self._random, self._random.choice([0, 0.125])
        return [
            EOS if draw.random() < chance else draw.randrange(30, self._vocab) for _ in range(count)
        ]


def fault(request: Request, answer: dict[str, Any], oracle: ReferenceModel) -> str | None:
    """What is wrong with one answer of /generate, or None.

    Every token must be the oracle's first choice after the tokens before it. The request must end
    for the first reason that applies: a stop token, the length, or the abort that was asked for. If
    an abort comes in the step that samples a stop token, SGLang reports an abort.
    """
    output, ended = answer["output_ids"], answer["meta_info"]["finish_reason"]["type"]
    stops = {EOS, *request.stops}
    last_is_stop = bool(output) and output[-1] in stops
    if stops & set(output[:-1]):
        return f"went on after a stop token (ended by {ended})"
    right = {
        "length": len(output) == request.new and not last_is_stop,
        "stop": last_is_stop,
        "abort": request.ending == "abort" and len(output) <= request.new,
    }
    if not right.get(ended, False):
        return f"ended by {ended} after {len(output)} of {request.new} tokens"
    return _wrong_token(request.prompt, output, oracle)


def _wrong_token(prompt: list[int], output: Sequence[int], oracle: ReferenceModel) -> str | None:
    if not output:
        return None
    logits = oracle([*prompt, *output[:-1]])[len(prompt) - 1 :]
    for i, (row, token) in enumerate(zip(logits, output, strict=True)):
        if row.max() - row[token] > TIE:
            return f"token {i} of the output is {token}, expected {int(row.argmax())}"
    return None
