"""The events that `parser` reports about an answer, piece by piece.

Owns: these three types. The joined pieces are the answer's text and the arguments of each call.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """The next piece of the text around the calls."""

    text: str


@dataclass(frozen=True)
class Call:
    """Call number `index` has begun; it calls the tool `name`."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """The next piece of the JSON object of call number `index`."""

    index: int
    json: str


Event = Text | Call | Arguments
