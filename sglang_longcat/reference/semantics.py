"""The rules that implementations of this model are known to get wrong, as switches.

Owns: the names of those rules. A test flips one to prove that it would notice an engine that
breaks it; the defaults are the model. Leaves the rules themselves to ngram.py and moe.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Semantics:
    """The defaults are LongCat-Flash-Lite; any other value is a known mistake.

    identity_scaled: identity experts are multiplied by routed_scaling_factor like the others.
    eos_cuts_lookback: an n-gram does not reach over an EOS into the text before it.
    word_row_divided: the mean over 1 + tables rows includes the word row.
    late_order: tables of this order (2 .. n) get the ids of the token before; None for no order.
    """

    identity_scaled: bool = True
    eos_cuts_lookback: bool = True
    word_row_divided: bool = True
    late_order: int | None = None


LONGCAT_LITE = Semantics()
