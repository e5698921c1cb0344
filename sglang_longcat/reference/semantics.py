"""The rules that implementations of this model are known to get wrong, as switches.

Owns: the names of these rules. A test flips a switch to prove that it would notice an engine that
breaks the rule. The defaults are the model. ngram.py and moe.py implement the rules.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Semantics:
    """The defaults are LongCat-Flash-Lite; any other value is a known mistake.

    identity_scaled: routed_scaling_factor multiplies identity experts as it does the others.
    eos_cuts_lookback: an n-gram does not reach over an EOS into the text before it.
    word_row_divided: the mean over 1 + tables rows includes the word row.
    late_order: tables of this order (2 .. n) get the ids of the previous token; None: no table.
    """

    identity_scaled: bool = True
    eos_cuts_lookback: bool = True
    word_row_divided: bool = True
    late_order: int | None = None


LONGCAT_LITE = Semantics()
