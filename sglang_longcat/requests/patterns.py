"""Which regular expressions may stop a generation.

Owns: the check of `stop_regex`. SGLang searches the answer with Python's `re` in the scheduler, at
every token, while all other requests wait. A repeat inside a repeat, such as (a+)+b, can take time
that doubles with each character of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from re import _constants as op  # type: ignore[attr-defined]  # as SGLang reads patterns
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from sglang_longcat.requests.kinds import Text, Wrong

_LONGEST = 256  # bytes: SGLang's own limit
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)


@dataclass(frozen=True)
class Pattern:
    """A regular expression that compiles and whose search takes polynomial time."""

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        unfit = list(Text().wrong(where, value, vocab))
        if unfit:
            yield from unfit
        elif len(value.encode()) > _LONGEST:
            yield Wrong(where, value, f"at most {_LONGEST} bytes")
        elif problem := _problem(value):
            yield Wrong(where, value, f"a Python regular expression {problem}")


def _problem(pattern: str) -> str | None:
    try:
        re.compile(pattern)
        parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"that compiles ({error})"
    if _repeats_a_choice(parsed, inside=False):
        return "without a repeat or a choice inside a repeat, which can take exponential time"
    return None


def _repeats_a_choice(parsed: Any, inside: bool) -> bool:
    """Whether a repeat contains something that can match in more than one way. `inside`: the
    pattern itself is repeated."""
    for token, value in parsed:
        if inside and (token in (op.BRANCH, op.GROUPREF) or _varies(token, value)):
            return True
        repeated = inside or (token in _REPEATS and value[1] > 1)
        if any(_repeats_a_choice(body, repeated) for body in _bodies(token, value)):
            return True
    return False


def _varies(token: Any, value: Any) -> bool:
    return token in _REPEATS and value[0] != value[1]


def _bodies(token: Any, value: Any) -> list[Any]:
    """The patterns inside one element."""
    if token is op.SUBPATTERN or token in _REPEATS:
        return [value[-1]]
    if token is op.BRANCH:
        return list(value[1])
    if token in (op.ASSERT, op.ASSERT_NOT):
        return [value[1]]
    if token is op.ATOMIC_GROUP:
        return [value]
    if token is op.GROUPREF_EXISTS:
        return [body for body in value[1:] if body is not None]
    return []
