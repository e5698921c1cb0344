"""One turn over POST /generate: what is sent, and what a client sees of it and when.

Owns: the request and the times. SGLang's own clients answer with text, and a conversation goes on
with the token ids of the answer.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

LONGEST_LINE = 1 << 23  # bytes; the last line of a stream has the whole answer


@dataclass(frozen=True)
class Reply:
    """output: token ids. host_tokens: of the cached ones, those that came back from host memory.
    accept_length: tokens a verification, None without drafts. Times in seconds from the request."""

    output: list[int]
    prompt_tokens: int
    cached_tokens: int
    host_tokens: int
    accept_length: float | None
    ttft: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens/s after the first one; 0 if there is no other."""
        decoding = self.seconds - self.ttft
        return (len(self.output) - 1) / decoding if decoding > 0 else 0.0


class TurnError(RuntimeError):
    """The server did not answer a turn in full."""


def new_session() -> aiohttp.ClientSession:
    """Without a time limit: a full server lets a turn wait as long as it takes."""
    timeout = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(timeout=timeout, read_bufsize=LONGEST_LINE)


async def ask(session: aiohttp.ClientSession, url: str, prompt: list[int], tokens: int) -> Reply:
    """Greedy, exactly `tokens` tokens, streamed. Raises TurnError."""
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    body = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
    begin, ttft, last = time.perf_counter(), None, b""
    try:
        async with session.post(f"{url}/generate", json=body) as response:
            if response.status != 200:
                raise TurnError(f"HTTP {response.status}: {(await response.text())[:500]}")
            async for line in response.content:
                if line.startswith(b"data: {"):
                    last = line
                    if ttft is None and json.loads(line[6:]).get("output_ids"):
                        ttft = time.perf_counter() - begin
    except aiohttp.ClientError as error:
        raise TurnError(f"the connection failed, see the server's log: {error!r}") from error
    seconds = time.perf_counter() - begin
    return reply(json.loads(last[6:] or "{}"), tokens, ttft=ttft, seconds=seconds)


def reply(said: dict[str, Any], tokens: int, *, ttft: float | None, seconds: float) -> Reply:
    """`said`: the last line of the stream, whose output_ids are those of the whole answer."""
    output = said.get("output_ids", [])
    if ttft is None or len(output) != tokens:
        raise TurnError(f"{len(output)} of {tokens} tokens were answered: {str(said)[:500]}")
    meta = said["meta_info"]
    return Reply(
        output,
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta["cached_tokens"],
        host_tokens=(meta.get("cached_tokens_details") or {}).get("host") or 0,
        accept_length=meta.get("spec_accept_length"),
        ttft=ttft,
        seconds=seconds,
    )
