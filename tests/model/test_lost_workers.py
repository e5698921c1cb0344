"""A prefill or a decode worker that is killed: who gets an error, which, and what goes on.

Owns: how SGLang's workers for prefill and decode take the loss of one another, over HTTP, as a
router's clients see it. Every post has a time limit: a request that hangs turns a test red.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Server, free_port, server
from tests.model.scoring import Answer, Oracle, answer, assert_same, text
from tests.model.test_disaggregation import ENV
from tests.serving.http import post

# A prefill worker counts as lost after three missed heartbeats. Fewer are missed on a busy machine.
LOOK_OFTEN = {
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",  # the shortest that SGLang allows
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "3",
}
# How long a worker waits for the other one's half of a request: 300 s by default. No heartbeat
# decides, as no prefill worker is lost.
WAIT_BRIEFLY = {
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "20",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "20",
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "100",
}
LIMIT = 120  # seconds until an answer is missing; the longest below takes 20 on idle cores
Reply = tuple[int, str]  # HTTP status and body


@dataclass(frozen=True)
class Prefill:
    """A prefill worker and its bootstrap port."""

    http: Server
    port: int


def worker(
    path: Path, mode: str, port: int, env: dict[str, str], **flags: Any
) -> AbstractContextManager[Server]:
    return server(
        path,
        env=ENV | env,
        disaggregation_mode=mode,
        disaggregation_transfer_backend="mooncake",
        disaggregation_bootstrap_port=port,
        **flags,
    )


class Router:
    """Sends a request to both workers, as a router does. Nothing is sent again."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._rooms: Iterator[int] = itertools.count(1)

    def send(
        self, prefill: Prefill, decode: Server, prompt: list[int], tokens: int = 8
    ) -> tuple[Future[Reply], Future[Reply]]:
        """The answers of the prefill worker and of the decode worker."""
        body = self.body(prefill, prompt, tokens)
        return self.post(prefill.http, body), self.post(decode, body)

    def body(self, prefill: Prefill, prompt: list[int], tokens: int = 8) -> dict[str, Any]:
        return {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": prefill.port,
            "bootstrap_room": next(self._rooms),
        }

    def post(self, http: Server, body: dict[str, Any]) -> Future[Reply]:
        return self._pool.submit(post, http, "/generate", body, LIMIT)


@pytest.fixture
def router() -> Iterator[Router]:
    with ThreadPoolExecutor(16) as pool:
        yield Router(pool)


def answered(prompt: list[int], reply: Future[Reply]) -> Answer:
    status, body = reply.result()
    assert status == 200, body
    return answer(prompt, json.loads(body))


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def chunks(worker: Server) -> int:
    return worker.log.count("Prefill batch")


def test_a_lost_prefill_worker(tiny: Path, oracle: Oracle, router: Router) -> None:
    """Red if requests whose prefill is lost wait for ever or get no reason, if the decode worker
    loses one that it had already received, or if it cannot go on with another prefill worker, or
    with one that comes back at the same address."""
    prompts = {seed: text(7, seed=seed) for seed in range(1, 6)}
    lost_port, other_port = free_port(), free_port()
    with (
        worker(tiny, "prefill", other_port, LOOK_OFTEN) as http,
        worker(tiny, "decode", other_port, LOOK_OFTEN) as decode,
    ):
        other = Prefill(http, other_port)
        with worker(tiny, "prefill", lost_port, LOOK_OFTEN, chunked_prefill_size=1) as http:
            lost = Prefill(http, lost_port)
            received = router.send(lost, decode, prompts[1], tokens=200)[1]
            wait_until(lambda: "Decode batch" in decode.log)
            victims = [router.send(lost, decode, text(n, seed=n)) for n in (900, 100)]
            begun = chunks(http)
            wait_until(lambda: chunks(http) > begun + 3)
            http.close()
        meanwhile = router.send(other, decode, prompts[2])[1]
        for first, second in victims:
            assert first.result()[0] == 0, "the killed worker has answered"
            status, body = second.result()
            assert status == 500
            assert (
                f"Lost connection with prefill instance (bootstrap_addr: 127.0.0.1:{lost_port}"
                in body
            )
        nobody = router.send(lost, decode, prompts[3])[1].result()
        assert nobody[0] == 500
        assert "Decode handshake failed" in nobody[1]
        assert f"Could not fetch prefill parallel info from 127.0.0.1:{lost_port}" in decode.log
        later = router.send(other, decode, prompts[4])[1]
        with worker(tiny, "prefill", lost_port, LOOK_OFTEN) as http:
            back = router.send(Prefill(http, lost_port), decode, prompts[5])[1]
            replies = (received, meanwhile, None, later, back)
            answers = [
                answered(prompts[seed], reply)
                for seed, reply in enumerate(replies, start=1)
                if reply is not None
            ]
    assert len(answers[0].output) == 200
    assert_same(answers, oracle)


def test_a_lost_decode_worker(tiny: Path, oracle: Oracle, router: Router) -> None:
    """Red if a client of a killed decode worker waits for ever, if the prefill worker keeps its
    request for ever, or if it cannot serve another decode worker afterwards."""
    port = free_port()
    with worker(tiny, "prefill", port, WAIT_BRIEFLY, chunked_prefill_size=1) as http:
        prefill = Prefill(http, port)
        with worker(tiny, "decode", port, WAIT_BRIEFLY) as decode:
            running = router.send(prefill, decode, text(5, seed=1), tokens=900)[1]
            wait_until(lambda: "Decode batch" in decode.log)
            first, second = router.send(prefill, decode, text(40, seed=2))
            begun = chunks(http)
            wait_until(lambda: chunks(http) > begun + 3)
            decode.close()
        for reply in (running, second):
            assert reply.result()[0] == 0, "the killed worker has answered"
        status, body = first.result()
        assert status == 500
        assert "Failed to send kv chunk" in body
        with worker(tiny, "decode", port, WAIT_BRIEFLY) as decode:
            prompt = text(9, seed=3)
            after = router.send(prefill, decode, prompt)[1]
            assert_same([answered(prompt, after)], oracle)


def test_half_a_request(tiny: Path, oracle: Oracle, router: Router) -> None:
    """Red if a worker waits for ever for a request that the router has sent to the other one only,
    or if another request is lost with it."""
    port, prompt = free_port(), text(9, seed=3)
    with (
        worker(tiny, "prefill", port, WAIT_BRIEFLY) as http,
        worker(tiny, "decode", port, WAIT_BRIEFLY) as decode,
    ):
        prefill = Prefill(http, port)
        halves = [router.post(each, router.body(prefill, prompt)) for each in (http, decode)]
        whole = router.send(prefill, decode, prompt)[1]
        assert_same([answered(prompt, whole)], oracle)
        for half, state in zip(halves, ("Bootstrapping", "WaitingForInput"), strict=True):
            status, body = half.result()
            assert status == 500
            assert "timed out after" in body
            assert f"in KVPoll.{state}" in body
