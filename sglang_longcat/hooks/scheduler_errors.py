"""Answer a request whose handler fails in the scheduler, and keep serving the others.

Why: an exception in a handler of the scheduler ends the process, and every client loses its answer.
Wrong values of a generation request are refused before (`request_fields`). Left are control
requests (weights, memory, sessions, profiles), and faults that nobody has found yet.
Upstream: managers/scheduler.py, Scheduler.init_request_dispatcher, whose table is called once per
request. The handlers of weight updates end at a barrier; a rank that failed before it must still
arrive there, or the other ranks wait for it.
Remove when: SGLang's scheduler answers the request whose handler raised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sglang_longcat.requests.check import BadRequest
from sglang_longcat.requests.released import require_resumed

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

TARGET = "sglang.srt.managers.scheduler.Scheduler.init_request_dispatcher"
_END_AT_BARRIER = (
    "BeginWeightUpdateReqInput",
    "EndWeightUpdateReqInput",
    "UpdateWeightsFromTensorReqInput",
    "UpdateWeightsFromIPCReqInput",
)
# Of an answer that says that nothing was done. Other fields have defaults.
_NOTHING_DONE: dict[str, Any] = {
    "success": False,
    "updated": False,
    "session_id": None,
    "parameter": None,
    "internal_state": {},
    "layout": {},
}

FAILED = "sglang-longcat: failed: "

logger = logging.getLogger(__name__)


def apply(_result: None, scheduler: Scheduler) -> None:
    from sglang_longcat.host.hf_config import is_served_by_us

    if is_served_by_us(scheduler.model_config.hf_config):
        scheduler._request_dispatcher = _guarded(scheduler, scheduler._request_dispatcher)


def _guarded(scheduler: Any, dispatch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def guarded(request: Any) -> Any:
        try:
            require_resumed(
                type(request).__name__,
                scheduler.weight_updater.offload_tags,
                paused=scheduler._engine_paused,
            )
            return dispatch(request)
        except Exception as error:
            logger.exception("A %s failed; the server goes on.", type(request).__name__)
            return _answer(scheduler, request, error)

    return guarded


def _answer(scheduler: Any, request: Any, error: Exception) -> Any:
    """The answer of a control request. Generations are aborted, and answer None."""
    name, message = type(request).__name__, str(error)
    status = HTTPStatus.BAD_REQUEST
    if not isinstance(error, BadRequest):
        message = f"{type(error).__name__}: {message}"
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    if name.startswith("Tokenized"):
        _abort(scheduler, request, message, status)
    elif name.startswith("BatchTokenized"):
        for one in request:
            _abort(scheduler, one, message, status)
    else:
        if name in _END_AT_BARRIER:
            import torch

            torch.distributed.barrier(group=scheduler.tp_cpu_group)
        return failed_output(name, message)
    return None


def _abort(scheduler: Any, request: Any, message: str, status: HTTPStatus) -> None:
    from sglang.srt.managers.io_struct import AbortReq

    reason = {
        "type": "abort",
        "status_code": status,
        "err_type": status.phrase.replace(" ", ""),
        "message": f"The scheduler could not take this request: {message}",
    }
    scheduler.send_abort_output(AbortReq(rid=request.rid, finished_reason=reason), request)


def failed_output(name: str, message: str) -> Any:
    """SGLang's answer to a control request of class `name`, saying that nothing was done and why.
    None if the request has no answer. Some classes have no field for a message; all have `rid`,
    where `control_requests` reads it."""
    import msgspec
    from sglang.srt.managers import io_struct

    output = getattr(io_struct, f"{name.removesuffix('Input')}Output", None)
    if output is None:
        return None
    told = {"message": message, "error_message": message, "rid": f"{FAILED}{message}"}
    values = {**_NOTHING_DONE, **told}
    names = {field.name for field in msgspec.structs.fields(output)}
    return output(**{key: value for key, value in values.items() if key in names})
