"""Answer a prompt that the N-gram embedding cannot look up with HTTP 400, and keep serving.

Why: SGLang checks the length of a prompt, not its ids. An id outside the vocabulary, or no token at
all (an empty text), ends the scheduler with an IndexError, or on a GPU reads beyond the tables.
Embeddings in place of tokens leave the hash without its predecessors, which gives wrong answers.
Upstream: managers/utils.py, validate_input_length, which the scheduler calls once per request,
whichever front end took it (HTTP, extra tokenizer workers, gRPC, Engine, sessions).
Remove when: SGLang's scheduler checks token ids against the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

TARGET = "sglang.srt.managers.utils.validate_input_length"


def apply(result: str | None, req: Req, *_args: object, **_kwargs: object) -> str | None:
    """The error message for the client; None lets the request pass."""
    from sglang.srt.runtime_context import process_model_config

    from sglang_longcat.host.hf_config import is_served_by_us

    model = process_model_config()
    if result or not is_served_by_us(model.hf_config):
        return result
    return _embeddings(req) or _tokens(req, vocab_size=model.vocab_size)


def _embeddings(req: Req) -> str | None:
    if req.input_embeds is None and req.positional_embed_overrides is None:
        return None
    # SGLang still runs a refused request for one step, on a token of its own. It would prefer these
    # embeddings to that token.
    req.input_embeds = req.positional_embed_overrides = None
    return "LongCat-Flash-Lite hashes token ids and takes no embeddings; send input_ids or text."


def _tokens(req: Req, vocab_size: int) -> str | None:
    ids = req.origin_input_ids
    if not len(ids):
        return "The prompt is empty; send at least one token."
    for extreme in (min(ids), max(ids)):
        if not 0 <= extreme < vocab_size:
            return (
                f"Token id {extreme} is outside the vocabulary; expected 0 to {vocab_size - 1}. "
                "Tokenize with this model's tokenizer."
            )
    return None
