"""Strings and numbers as xgrammar obeys them.

Owns: which formats are enforced. A format that is neither in `_FORMATS` nor in `_XGRAMMAR` is an
annotation, as JSON Schema says of all formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sglang_longcat.tool_parser.schema import patterns
from sglang_longcat.tool_parser.schema.document import Document
from sglang_longcat.tool_parser.schema.facts import Facts
from sglang_longcat.tool_parser.schema.refusal import SchemaRefused

_YEAR = "[1-9][0-9]{3}"
_DATE = f"{_YEAR}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|{_YEAR}-(?:0[13-9]|1[0-2])-(?:29|30)"
_DATE = f"(?:{_DATE}|{_YEAR}-(?:0[13578]|1[02])-31)"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_HEX = "[0-9a-f]"
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
# These are narrower than the RFCs: xgrammar's own allow 30 February and 10.0.0.010, cannot be
# combined with a length, and can only be written as JSON.
_FORMATS = {
    "date": _DATE,
    "time": f"{_TIME}{_ZONE}",
    "date-time": f"{_DATE}T{_TIME}{_ZONE}",
    "uuid": "-".join(f"{_HEX}{{{size}}}" for size in (8, 4, 4, 4, 12)),
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL})*\.[a-z]{{2,8}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,4}}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "uri": rf"[a-z][a-z0-9+.-]*://{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,4}})?(?:/{_PATH}*)*"
    rf"(?:\?{_PATH}*)?(?:#{_PATH}*)?",
}
_XGRAMMAR = frozenset(["duration", "ipv6", "uri-reference", "uri-template"])
_REFUSED = frozenset(["json-pointer", "relative-json-pointer"])  # xgrammar writes broken JSON
_EXACT = 2**53 - 1  # beyond it xgrammar's bounds are rounded
_SMALLEST = 1e-6  # xgrammar reads a smaller bound as none that any number meets


def string(facts: Facts, document: Document, *, quoted: bool = True) -> dict[str, Any]:
    """A JSON schema, or if not `quoted`, {"pattern": ...} of the string's own characters."""
    least, most = _length(facts)
    formats = [name for name in facts.formats if name in _XGRAMMAR | _REFUSED | _FORMATS.keys()]
    at = facts.sources[-1] if facts.sources else ""
    wanted = [(where, "pattern", document.at(where)["pattern"]) for where in facts.patterns]
    wanted += [(at, "format", f"^(?:{_FORMATS[name]})$") for name in formats if name in _FORMATS]
    wanted = list({text: (where, word, text) for where, word, text in wanted}.values())
    foreign = [name for name in formats if name not in _FORMATS]
    if foreign:
        return _foreign(foreign, at, alone=not wanted and least <= 1 and most is None and quoted)
    if len(wanted) > 1:
        raise SchemaRefused(wanted[1][0], wanted[1][1], "two patterns for one string")
    if not wanted:
        if not least and most is None:
            return {"type": "string"}
        wanted = [(at, "maxLength" if most is not None else "minLength", r"^[\s\S]*$")]
    [(where, keyword, text)] = wanted
    try:
        return {"type": "string", "pattern": patterns.write(text, least, most, quoted=quoted)}
    except patterns.Unwritable as error:
        raise SchemaRefused(where, keyword, str(error)) from None


def _foreign(formats: list[str], at: str, *, alone: bool) -> dict[str, Any]:
    if len(formats) > 1 or formats[0] in _REFUSED or not alone:
        raise SchemaRefused(at, "format", f"'{formats[0]}' with other limits of the string")
    return {"type": "string", "format": formats[0]}


def _length(facts: Facts) -> tuple[int, int | None]:
    most = facts.limits.get("maxLength")
    return math.ceil(facts.limits.get("minLength", 0)), None if most is None else math.floor(most)


def number(facts: Facts, *, whole: bool) -> dict[str, Any] | None:
    """None: no number is between the bounds."""
    at, limits = (facts.sources[-1] if facts.sources else ""), facts.limits
    low = _bound(limits.get("minimum"), limits.get("exclusiveMinimum"), 1, whole)
    high = _bound(limits.get("maximum"), limits.get("exclusiveMaximum"), -1, whole)
    if _crossed(low, high):
        return None
    return {
        "type": "integer" if whole else "number",
        **_keyword(low, "inimum", -1, at),
        **_keyword(high, "aximum", 1, at),
    }


_Bound = tuple[float, bool]  # the bound, and whether the number itself is out of it


def _bound(given: float | None, beyond: float | None, inward: int, whole: bool) -> _Bound | None:
    """The tighter one of an inclusive and an exclusive bound; of integers always inclusive."""
    sides = [(value, out) for value, out in ((given, False), (beyond, True)) if value is not None]
    if whole:
        step: Callable[[float], int] = math.ceil if inward > 0 else math.floor
        sides = [(step(v) + inward * (out and step(v) == v), False) for v, out in sides]
    return max(sides, key=lambda side: (inward * side[0], side[1]), default=None)


def _crossed(low: _Bound | None, high: _Bound | None) -> bool:
    if low is None or high is None:
        return False
    return low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))


def _keyword(bound: _Bound | None, name: str, outward: int, at: str) -> dict[str, float]:
    if bound is None:
        return {}
    value, out = bound
    keyword = f"exclusiveM{name}" if out else f"m{name}"
    if value * outward > _EXACT:  # wider than what can be told: a narrower bound does not harm
        return {f"m{name}": _EXACT * outward}
    if abs(value) > _EXACT or 0 < abs(value) < _SMALLEST:
        raise SchemaRefused(at, keyword, f"the bound {value} is too large or too small")
    return {keyword: value}
