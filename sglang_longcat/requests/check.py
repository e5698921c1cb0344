"""Check a request against the tables of `fields.py`.

Owns: the walk through a request, and the message for its client. The values are checked as the
client sent them; nothing is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from sglang_longcat.requests.fields import CONTROL, REQUEST, SAMPLING, Field
from sglang_longcat.requests.kinds import Absent, Json, ListOf, TokenIds, Wrong

_NESTED = frozenset([list, type(None)])
_SHOWN = 80  # characters of a wrong value in the message


class BadRequest(ValueError):
    """A request with a wrong value. SGLang's routes answer a ValueError with HTTP 400."""


def check_request(request: Any, vocab: int) -> None:
    """Raise BadRequest for the first wrong value in `request`, a GenerateReqInput. `vocab`: the
    number of tokens in the served model's vocabulary."""
    for wrong in wrong_values(request, vocab):
        raise BadRequest(_message(wrong))


def leave_out_absent(request: Any) -> None:
    """Set fields that are to be left out, and are empty, to their default. SGLang takes an empty
    list for the value of a batch."""
    for field in dataclasses.fields(request):
        if isinstance(REQUEST[field.name].kind, Absent):
            setattr(request, field.name, field.default)


def check_control(request: Any) -> None:
    """Raise BadRequest for the first wrong value in a control request, one of SGLang's structs."""
    kinds = CONTROL.get(type(request).__name__, {})
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if value is not None:
            for wrong in kinds.get(name, Json()).wrong(name, value, 0):
                raise BadRequest(_message(wrong))


def check_tokens(tokens: list[Any], vocab: int) -> None:
    """Raise BadRequest for the first id outside the vocabulary, in a list of ids or of lists."""
    for wrong in _wrong("tokens", Field(TokenIds(), per_request=True), tokens, vocab):
        raise BadRequest(_message(wrong))


def wrong_values(request: Any, vocab: int) -> Iterator[Wrong]:
    sizes = {name: _batch_size(name, request) for name in ("text", "input_ids")}
    for name, field in REQUEST.items():
        value = getattr(request, name)
        if value is not None:
            yield from _wrong(name, field, value, vocab)
    prompts = [(name, size) for name, size in sizes.items() if getattr(request, name) is not None]
    for name, size in prompts:
        if size == 0:
            yield Wrong(name, [], "at least one prompt")
        if size != prompts[0][1]:
            yield Wrong(name, getattr(request, name), "as many prompts as text has")
    if prompts:
        yield from _wrong_lengths(request, prompts[0][1])


def _batch_size(name: str, request: Any) -> int | None:
    """How many prompts the field holds; None: it is the prompt of a single request."""
    value = getattr(request, name)
    if not isinstance(value, list) or _is_one_list(REQUEST[name], value):
        return None
    return len(value)


def _wrong_lengths(request: Any, size: int | None) -> Iterator[Wrong]:
    expected = "no list, for a single prompt" if size is None else f"a list of {size}, as prompts"
    for name, field in REQUEST.items():
        value = getattr(request, name)
        many = field.per_request and isinstance(value, list) and not _is_one_list(field, value)
        if many and len(value) != size:
            yield Wrong(name, f"a list of {len(value)}", expected)


def _wrong(name: str, field: Field, value: object, vocab: int) -> Iterator[Wrong]:
    if not (field.per_request and isinstance(value, list)) or _is_one_list(field, value):
        yield from field.kind.wrong(name, value, vocab)
        return
    for index, item in enumerate(value):
        if item is not None or not field.gaps:
            yield from field.kind.wrong(f"{name}[{index}]", item, vocab)


def _is_one_list(field: Field, value: list[object]) -> bool:
    """Whether the list is the value of one request, not of a batch: then it holds no lists."""
    return isinstance(field.kind, TokenIds | ListOf) and _NESTED.isdisjoint(map(type, value))


def _message(wrong: Wrong) -> str:
    shown = repr(wrong.value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    return f"{wrong.where}{_other_names(wrong.where)} is {shown}; expected {wrong.expected}."


def _other_names(where: str) -> str:
    first, _, rest = where.partition(".")
    table, name = (SAMPLING, rest) if first.startswith("sampling_params") else (REQUEST, first)
    field = table.get(name.partition("[")[0])
    return f" (also sent as {field.also})" if field and field.also else ""
