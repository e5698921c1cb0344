"""End only the request whose custom logit processor fails.

Why: with --enable-custom-logit-processor a request brings Python code. If that code raises, or
returns logits of another shape, the scheduler ends for all clients.
Upstream: sampling/custom_logit_processor.py, CustomLogitProcessor.from_str, which makes every
processor that SGLang calls (layers/sampler.py, apply_custom_logit_processor).
Remove when: SGLang aborts the requests of a processor that failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import torch

TARGET = "sglang.srt.sampling.custom_logit_processor.CustomLogitProcessor.from_str"

logger = logging.getLogger(__name__)


def apply(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The processor, as an instance of a subclass of its own class: SGLang asks for its class."""
    processor = original(*args, **kwargs)
    own = type(processor)
    processor.__class__ = type(own.__name__, (own,), {"__call__": _guarded(own.__call__)})
    return processor


def _guarded(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def guarded(self: Any, logits: torch.Tensor, custom_param_list: Any = None) -> torch.Tensor:
        before = logits.clone()  # the processor may have written half of its changes
        try:
            result = call(self, logits, custom_param_list)
            if result.shape != before.shape:
                raise ValueError(f"it returned shape {tuple(result.shape)}")
            return result
        except Exception as error:
            logger.warning("A custom logit processor failed.", exc_info=True)
            _abort(custom_param_list, type(self).__name__, error)
            return before

    return guarded


def _abort(custom_param_list: list[dict[str, Any]], name: str, error: Exception) -> None:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    message = f"The custom logit processor {name} failed: {type(error).__name__}: {error}"
    for params in custom_param_list:
        params["__req__"].to_finish = FINISH_ABORT(
            message, HTTPStatus.BAD_REQUEST, "BadRequestError"
        )
