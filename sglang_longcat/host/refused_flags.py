"""Server flags that this model does not support, refused by name before weights are loaded.

The tables are in `refusals/`. They are read twice: by `refuse_early` with what the user typed,
before SGLang starts a process, and by the model with what SGLang made of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang_longcat.host import refusals
from sglang_longcat.host.refusals.weights import contradictions

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


class UnsupportedFlag(ValueError):
    """A server flag that LongCat-Flash-Lite cannot be served with."""


def unsupported_flags(args: ServerArgs) -> list[str]:
    """One line per refused flag: the flag, the reason, and what to do instead."""
    from sglang.srt.arg_groups.overrides import resolved_view

    messages = [row.message(args) for row in refusals.ALWAYS if row.is_refused(args)]
    resolved = resolved_view(args)  # `args` keeps what was typed: no defaults, no aliases
    rows = refusals.RESOLVED
    if args.speculative_algorithm is not None:
        rows += refusals.WITH_SPECULATION
    return messages + [row.message(resolved) for row in rows if row.is_refused(resolved)]


def refuse_unsupported(args: ServerArgs) -> None:
    """Raise UnsupportedFlag naming every refused flag."""
    _refuse(unsupported_flags(args))


def refuse_contradictions(args: ServerArgs, stored: str | None) -> None:
    """Raise UnsupportedFlag for flags that want another format of weights than `stored`, the
    quant_method of config.json (None: unquantised)."""
    _refuse(contradictions(args, stored))


def _refuse(messages: list[str]) -> None:
    if messages:
        raise UnsupportedFlag(
            "sglang-longcat cannot serve LongCat-Flash-Lite with these flags:\n  "
            + "\n  ".join(messages)
        )
