"""What a parser tells about an answer, piece by piece.

Owns: these three types. Joined, the pieces are the answer's text and each call's arguments.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Call:
    """The call number `index` calls the tool `name`."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """The next piece of the JSON object of call number `index`."""

    index: int
    json: str


Event = Text | Call | Arguments
