"""Answer a request with a value that the server cannot serve with HTTP 400, and keep serving.

Why: SGLang checks some fields. Of the others, an absurd value ends the scheduler for all clients,
or the HTTP route answers 500. For example: top_logprobs_num beyond the vocabulary
(layers/logprob_processor.py), a stop token beyond it with min_new_tokens
(sampling/penaltylib/min_new_tokens.py), top_k of 2^31, a stop_regex that does not compile.
Upstream: managers/io_struct.py, GenerateReqInput.normalize_batch_and_arguments, the first thing
that TokenizerManager.generate_request does with a request, whichever front end took it (HTTP, extra
tokenizer workers, gRPC, Engine). After it, n samples have become n requests.
Remove when: SGLang checks every field before the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang_longcat.requests.check import BadRequest, check_request, leave_out_absent

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import GenerateReqInput

TARGET = "sglang.srt.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments"


def apply(original: Callable[[GenerateReqInput], None], request: GenerateReqInput) -> None:
    """Raises BadRequest, a ValueError, which every front end turns into its own 400."""
    from sglang.srt.runtime_context import process_model_config

    from sglang_longcat.host.hf_config import is_served_by_us

    model = process_model_config()
    if is_served_by_us(model.hf_config):
        check_request(request, vocab=model.vocab_size)
        leave_out_absent(request)
        _load_processors(request)
        _complete_sampling(request)
    original(request)


def _load_processors(request: GenerateReqInput) -> None:
    """Raise BadRequest for a custom logit processor that the scheduler could not load. Without
    --enable-custom-logit-processor SGLang refuses it, and its code must not be loaded."""
    from sglang.srt.runtime_context import get_exec
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    given = request.custom_logit_processor
    for one in given if isinstance(given, list) else [given]:
        if one and get_exec().features.enable_custom_logit_processor:
            try:
                CustomLogitProcessor.from_str(one)
            except Exception as error:  # a client's bytes: unpickling them may raise anything
                raise BadRequest(
                    f"custom_logit_processor cannot be loaded ({error}); expected what "
                    "CustomLogitProcessor.to_str returns."
                ) from error


def _complete_sampling(request: GenerateReqInput) -> None:
    """SGLang takes a null for a value that was left out, but compares `n` with a number. And only a
    custom logit processor with parameters is told its request, which ends if the processor fails.
    """
    params = request.sampling_params
    if isinstance(params, list):
        request.sampling_params = [_completed(one, request) for one in params]
    elif params is not None or request.custom_logit_processor:
        request.sampling_params = _completed(params or {}, request)


def _completed(params: dict[str, Any], request: GenerateReqInput) -> dict[str, Any]:
    params = {name: value for name, value in params.items() if value is not None or name != "n"}
    if request.custom_logit_processor and params.get("custom_params") is None:
        params["custom_params"] = {}
    return params
