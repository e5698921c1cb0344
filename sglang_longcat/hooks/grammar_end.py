"""End an answer where its grammar ends, also if the request says `ignore_eos`.

Why: a grammar ends with EOS, and accepts nothing after it. With `ignore_eos` SGLang looks at the
grammar one token late: without speculation it adds a token that the grammar never saw.
Upstream: managers/schedule_batch.py, Req._check_token_based_finish, which returns False at once for
`ignore_eos`; update_finish_state looks at grammar.is_terminated() after the length, and before
process_batch_result_decode has the grammar accept the newest token.
Remove when: SGLang's plain decode accepts a token into the grammar before it checks for the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

TARGET = "sglang.srt.managers.schedule_batch.Req._check_token_based_finish"


def apply(
    original: Callable[[Any, Sequence[int]], bool], request: Any, accepted: Sequence[int]
) -> bool:
    """Whether `accepted`, the newest tokens of `request`, end it."""
    if original(request, accepted):
        return True
    if not request.sampling_params.ignore_eos or request.grammar is None:
        return False
    from sglang.srt.managers.schedule_batch import FINISH_MATCHED_TOKEN

    from sglang_longcat.host.hf_config import is_serving_us

    if not is_serving_us() or not _ends(request, accepted):
        return False

    request.finished_reason = FINISH_MATCHED_TOKEN(matched=accepted[-1])
    request.finished_len = len(request.output_ids)
    return True


def _ends(request: Any, accepted: Sequence[int]) -> bool:
    """Speculation has cut `accepted` where the grammar ended. Elsewhere the grammar has not read
    its only token: if that is EOS, the grammar's mask let it through because nothing is missing."""
    if request.grammar.is_terminated():
        return True
    return (
        len(accepted) == 1
        and accepted[0] in _eos_tokens(request)
        and not _is_thinking(request.grammar)
    )


def _eos_tokens(request: Any) -> set[int]:
    ids, tokenizer = set(request.eos_token_ids or ()), request.tokenizer
    if tokenizer is not None:
        ids |= {tokenizer.eos_token_id, *(tokenizer.additional_stop_token_ids or ())}
    return ids


def _is_thinking(grammar: Any) -> bool:
    """Whether the grammar waits for the end of the reasoning, where EOS means nothing to it."""
    from sglang.srt.constrained.reasoner_grammar_backend import ReasonerGrammarObject

    return isinstance(grammar, ReasonerGrammarObject) and grammar._is_thinking()
