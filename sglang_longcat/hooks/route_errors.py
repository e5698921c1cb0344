"""Answer what a route or its request class fails on with HTTP 400, where the request is to blame.

Why: several routes leave a ValueError uncaught (/separate_reasoning, the Ollama routes), and some
request classes read a field before they know its type (a chat's `response_format` that is a list).
The client gets "500 Internal Server Error" without a reason.
Upstream: entrypoints/http_server.py, set_global_state, which the process that answers HTTP calls
before its app takes requests. `http_workers` does the same for extra workers.
Remove when: SGLang answers 400 in these places.
"""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

TARGET = "sglang.srt.entrypoints.http_server.set_global_state"
# SGLang's files of request classes.
_PARSERS = "protocol.py"


def apply(_result: None, *_args: Any, **_kwargs: Any) -> None:
    from sglang.srt.entrypoints.http_server import app

    add_handlers(app)


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ValueError, _bad_request)
    for error in (AttributeError, KeyError, TypeError):
        app.add_exception_handler(error, _bad_request_if_parsing)


async def _bad_request(_request: Request, error: Exception) -> Response:
    return _answer(HTTPStatus.BAD_REQUEST, str(error))


async def _bad_request_if_parsing(_request: Request, error: Exception) -> Response:
    """400 if a request class raised it, which then met a value of a wrong type. Anything else is a
    fault of the server."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if files and files[-1].endswith(_PARSERS):
        return _answer(HTTPStatus.BAD_REQUEST, f"The body has a value of a wrong type: {error}")
    return _answer(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error")


def _answer(status: HTTPStatus, message: str) -> Response:
    from fastapi.responses import ORJSONResponse

    error = {"object": "error", "message": message, "type": status.phrase, "code": status.value}
    return ORJSONResponse(error, status_code=status.value)
