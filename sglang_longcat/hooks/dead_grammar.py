"""Answer a grammar that accepts nothing with HTTP 400 instead of 500.

Why: xgrammar compiles a rule that only refers to itself ({"$ref": "#"}, `root ::= root`). No token
is allowed then, the sampler takes one all the same, and the request ends with an internal error.
Upstream: constrained/xgrammar_backend.py, XGrammarGrammarBackend._from_context, through which every
kind of grammar goes (json_schema, regex, ebnf, structural_tag).
Remove when: xgrammar refuses such a grammar when it compiles it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar, XGrammarGrammarBackend

TARGET = "sglang.srt.constrained.xgrammar_backend.XGrammarGrammarBackend._from_context"


def apply(
    result: XGrammarGrammar, backend: XGrammarGrammarBackend, *_: object, **__: object
) -> Any:
    from sglang.srt.constrained.base_grammar_backend import InvalidGrammarObject

    mask = result.allocate_vocab_mask(backend.vocab_size, 1, "cpu")
    result.copy().fill_vocab_mask(mask, 0)
    if mask.any():
        return result
    return InvalidGrammarObject(
        "the grammar allows no first token. Does a rule or a $ref only refer to itself?"
    )
