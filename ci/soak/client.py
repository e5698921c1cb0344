"""Sends the requests of a soak to a server, aborts or disconnects as each request says.

Owns: HTTP and time. `random_requests` draws the requests and judges an answer, `tally` counts, and
`__main__` starts the servers.
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import aiohttp

from ci.soak.random_requests import Draw, Request, fault
from ci.soak.tally import Tally
from sglang_longcat.reference import ReferenceModel

# Waves are small, because SGLang admits fewer requests after a retraction, until it was idle.
WAVE = 25
PATIENCE = 300  # seconds until a request counts as lost


class Client:
    """Sends all requests to one server. The results are in `tally`."""

    def __init__(self, base_url: str, oracle: ReferenceModel, tally: Tally) -> None:
        self._base_url, self._oracle, self._tally = base_url, oracle, tally
        self._judge = ThreadPoolExecutor(max_workers=1)  # the engine needs the other core

    async def run(self, draw: Draw, count: int) -> None:
        """Send `count` requests in waves until there is a fault; without one, send a last request
        to the idle server."""
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        # No kept connections: the server closes them after 5 idle seconds, perhaps at this moment.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            self._base_url, timeout=timeout, connector=connector
        ) as self._session:
            await self._waves(draw, count)
            if not self._tally.faults:
                # SGLang flushes only if idle, so requests that nobody waits for must have ended
                # too.
                await self._tell("/flush_cache?timeout=30", {})
                await self._send(replace(*draw.wave(1), ending="", delay=0))

    async def _waves(self, draw: Draw, count: int) -> None:
        begin, pauses = time.monotonic(), (1, 2) if self._tally.mixed else ()
        for done in range(0, count, WAVE):
            wave = draw.wave(min(WAVE, count - done))
            await asyncio.gather(
                *(self._send(request) for request in wave),
                *(self._pause(after=seconds) for seconds in pauses),
            )
            self._tally.seconds = time.monotonic() - begin
            self._tally.progress(done + len(wave), count)
            if self._tally.faults:
                return

    async def _send(self, request: Request) -> None:
        """Ask, perhaps abort or disconnect, and judge the answer."""
        await asyncio.sleep(request.delay)
        abort = asyncio.create_task(self._abort(request)) if request.ending == "abort" else None
        hang_up = request.patience if request.ending == "disconnect" else None
        try:
            answers = await asyncio.wait_for(self._ask(request), timeout=hang_up)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            if hang_up is not None and isinstance(error, TimeoutError):
                self._tally.counts["disconnected"] += 1
            else:
                self._tally.add_fault(f"no answer: {error!r}", request)
            return
        finally:
            if abort is not None:
                await abort
        await self._check(request, answers)

    async def _ask(self, request: Request) -> list[dict[str, Any]]:
        async with self._session.post("/generate", json=request.body()) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}: {await response.text()}")
            if request.stream:
                return [last_event(await response.text())]
            answer = await response.json()
            return answer if isinstance(answer, list) else [answer]

    async def _abort(self, request: Request) -> None:
        await asyncio.sleep(request.patience)
        await self._tell("/abort_request", {"rid": request.rid})

    async def _pause(self, after: float) -> None:
        """Retract every running request, also in the middle of a chunked prompt, then continue."""
        await asyncio.sleep(after)
        await self._tell("/pause_generation", {"mode": "retract"})
        await self._tell("/continue_generation", {})

    async def _tell(self, path: str, body: dict[str, str]) -> None:
        try:
            async with self._session.post(path, json=body) as response:
                if response.status != 200:
                    self._tally.add_fault(f"{path}: {response.status} {await response.text()}")
        except (TimeoutError, aiohttp.ClientError) as error:
            self._tally.add_fault(f"{path}: {error!r}")

    async def _check(self, request: Request, answers: list[dict[str, Any]]) -> None:
        counts = self._tally.counts
        counts["answered"] += 1
        if len(answers) != request.copies:
            self._tally.add_fault(f"{len(answers)} samples", request)
        for answer in answers:
            meta, output = answer["meta_info"], answer["output_ids"]
            counts["tokens"] += len(output)
            counts["cached_tokens"] += meta.get("cached_tokens", 0)
            counts["thrown_out"] += meta.get("num_retractions", 0)
            started = "" if output else " before the first token"
            counts[f"ended by {meta['finish_reason']['type']}{started}"] += 1
            loop = asyncio.get_running_loop()
            wrong = await loop.run_in_executor(self._judge, fault, request, answer, self._oracle)
            if wrong:
                self._tally.add_fault(wrong, request, output=output, meta=meta)


def last_event(stream: str) -> dict[str, Any]:
    """The last event of a stream. ValueError unless it is finished and all earlier events are
    unfinished and hold the beginning of its output."""
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    if events.count("[DONE]") != 1 or events[-1] != "[DONE]" or len(events) < 2:
        raise ValueError(f"a stream that ends with {events[-2:]}")
    *early, last = map(json.loads, events[:-1])
    if not last["meta_info"]["finish_reason"]:
        raise ValueError(f"a stream that stopped unfinished: {last}")
    for event in early:
        output = event["output_ids"]
        if event["meta_info"]["finish_reason"] or last["output_ids"][: len(output)] != output:
            raise ValueError(f"a stream that took back {event}, then ended with {last}")
    return last
