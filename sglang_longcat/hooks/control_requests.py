"""Check a control request before it is sent to the scheduler, and tell its client if it failed.

Why: a sleep of infinite seconds, or an integer of 100 digits, ends the scheduler or this process's
line to it. And the answers to some control requests have no field for a failure, so the route would
say 200.
Upstream: managers/communicator.py, FanOutCommunicator.__call__, through which the HTTP process
sends all control requests. Its routes answer an exception with HTTP 400.
Remove when: SGLang checks control requests, and every answer can carry an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sglang_longcat.hooks.release_memory import BUSY
from sglang_longcat.hooks.scheduler_errors import FAILED
from sglang_longcat.requests.check import BadRequest, check_control

TARGET = "sglang.srt.managers.communicator.FanOutCommunicator.__call__"
# The scheduler is busy for a moment after its last answer; requests that run longer are an error.
_RETRIES, _RETRY_S = 20, 0.05


async def apply(
    original: Callable[..., Awaitable[list[Any]]], communicator: Any, request: Any
) -> list[Any]:
    """The schedulers' answers. Raises BadRequest, a ValueError."""
    from sglang_longcat.host.hf_config import is_serving_us

    if request is None or not is_serving_us():
        return await original(communicator, request)
    check_control(request)
    answers = await original(communicator, request)
    for _ in range(_RETRIES):
        if BUSY not in _failure(answers):
            break
        await asyncio.sleep(_RETRY_S)
        answers = await original(communicator, request)
    if failure := _failure(answers):
        raise BadRequest(failure)
    return answers


def _failure(answers: list[Any]) -> str:
    """What an answer without a field for it says of its failure."""
    rids = [answer.rid or "" for answer in answers if not hasattr(answer, "success")]
    return next((rid.removeprefix(FAILED) for rid in rids if rid.startswith(FAILED)), "")
