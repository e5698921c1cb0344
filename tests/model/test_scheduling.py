"""The N-gram cache under everything the scheduler does to a request, token for token.

Owns: chunked and mixed prefill, radix-cache hits, retraction, slot reuse, abort, parallel samples,
with and without the overlap scheduler. The oracle knows none of these: it reads whole sequences.
"""

from __future__ import annotations

import functools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.harness import Server, engine, server
from tests.model.scoring import EOS, NATS, Answer, Oracle, answer, ask, assert_same, text

# Several at once, of lengths around every chunk size below, some with an EOS on a chunk's edge.
LENGTHS = (1, 2, 3, 5, 8, 17, 29, 40)


def crowd(*, seed: int) -> list[list[int]]:
    prompts = [text(length, seed=seed + length) for length in LENGTHS]
    for position in (1, 2, 6, 7, 13, 15, 16):
        for prompt in prompts[4:]:
            if position < len(prompt) - 1:
                prompt[position] = EOS
    return prompts


@pytest.mark.parametrize(
    "flags",
    [
        {"chunked_prefill_size": 1},
        {"chunked_prefill_size": 2, "disable_overlap_schedule": True},
        {"chunked_prefill_size": 3},
        {"chunked_prefill_size": 7, "disable_radix_cache": True},
        {"chunked_prefill_size": 16, "disable_overlap_schedule": True},
        {"chunked_prefill_size": 8, "page_size": 4},
    ],
    ids=lambda flags: "-".join(f"{name}={value}" for name, value in flags.items()),
)
def test_chunked_prefill(tiny: Path, oracle: Oracle, flags: dict[str, Any]) -> None:
    """Red if a chunk cannot see the tokens before it, if a chunk that is shorter than the n-gram
    order loses the older ones, or if the chunk of one request disturbs another's decoding. Twice:
    the second time most of a prompt comes from the radix cache."""
    with engine(tiny, **flags) as llm:
        assert_same(ask(llm, crowd(seed=0), logprobs_from=0), oracle)
        assert_same(ask(llm, crowd(seed=0)), oracle)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no-overlap"])
def test_mixed_chunks(tiny: Path, oracle: Oracle, overlap: bool) -> None:
    """Red if a request that decodes in the same batch as another's chunk is hashed with a token
    that is still on its way, or is taken for a prompt. SGLang does not mix requests that ask for
    logprobs."""
    with engine(
        tiny,
        enable_mixed_chunk=True,
        chunked_prefill_size=7,
        disable_overlap_schedule=not overlap,
    ) as llm:
        answers = ask(llm, crowd(seed=100), logprobs_from=None, max_new_tokens=16)
        mixed = re.findall(r"Prefill batch,.*#running-req: [1-9]", llm.log)
    assert len(mixed) > 3, "no prefill ran while others decoded: the test tests nothing"
    assert_same(answers, oracle)


@pytest.mark.parametrize("page_size", [1, 4])
def test_radix_hits_of_every_length(tiny: Path, oracle: Oracle, page_size: int) -> None:
    """Red if the first token after a cached prefix is hashed without its predecessors, which
    another slot computed: at every length mod 4, with an EOS as last, second or third last token
    of the prefix."""
    base = text(24, seed=200)
    for position in (8, 12, 13, 17):
        base[position] = EOS
    cuts = range(page_size, 20, page_size)
    branches = [[*base[:cut], *text(1 + cut % 3, seed=cut)[1:], 1990 - cut] for cut in cuts]
    with engine(tiny, page_size=page_size) as llm:
        ask(llm, [base])
        answers = ask(llm, branches)
    assert [answer.meta["cached_tokens"] for answer in answers] == list(cuts)
    assert_same(answers, oracle)


def test_conversation_and_logprobs_from_a_later_token(tiny: Path, oracle: Oracle) -> None:
    """Red if a turn that continues a cached answer loses what came before it (the cached prefix
    then ends in generated tokens), or if logprob_start_len, which limits the prefix that may be
    taken from the cache, makes the first scored token lose its predecessors."""
    prompt = text(9, seed=300)
    with engine(tiny) as llm:
        for turn in range(6):
            (reply,) = ask(llm, [prompt], max_new_tokens=2 + turn)
            assert_same([reply], oracle)
            if turn:
                assert reply.meta["cached_tokens"] > 8
            prompt = [*reply.sequence, *([EOS] if turn % 2 else []), *text(3, seed=turn)[1:]]
        for start in (1, 2, 3, 4, 7, len(prompt) - 2, len(prompt) - 1):
            (reply,) = ask(llm, [prompt], logprobs_from=start, max_new_tokens=2)
            assert min(reply.logprobs) <= start + 1
            assert_same([reply], oracle)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"disable_overlap_schedule": True},
        {"enable_mixed_chunk": True, "disable_radix_cache": True},
    ],
    ids=["overlap", "no-overlap", "mixed-without-radix"],
)
def test_retraction(tiny: Path, oracle: Oracle, flags: dict[str, Any]) -> None:
    """Red if a request that was thrown out of a full KV pool comes back, into another slot, hashed
    without its own earlier output."""
    prompts = [text(length, seed=400 + length) for length in range(6, 12)]
    with engine(
        tiny,
        max_total_tokens=160,
        schedule_conservativeness=0.01,  # admit all six, although the pool holds four at the end
        chunked_prefill_size=4,
        **flags,
    ) as llm:
        logprobs = None if "enable_mixed_chunk" in flags else -1
        # ignore_eos would make SGLang reserve the whole output; this model never says EOS unasked.
        answers = ask(llm, prompts, logprobs_from=logprobs, max_new_tokens=40, ignore_eos=False)
    assert any(answer.meta["num_retractions"] for answer in answers)
    assert all(len(answer.output) == 40 for answer in answers)
    assert_same(answers, oracle)


def test_few_slots_and_parallel_samples(tiny: Path, oracle: Oracle) -> None:
    """Red if the last, overlapped step of a finished request writes into the slot's next owner, or
    if samples of one prompt share a slot's predecessors. Sampled at temperature 1, where a logprob
    is that of the plain distribution, so every step is checked against the oracle all the same."""
    prompts = [text(1 + i % 5, seed=500 + i) for i in range(14)]
    with engine(tiny, max_running_requests=3) as llm:
        for prompt_set, lengths in ((prompts[:7], 3), (prompts[7:], 5)):
            assert_same(ask(llm, prompt_set, max_new_tokens=lengths), oracle)
        sampled = ask(llm, prompts[:4], n=2, temperature=1, max_new_tokens=12)
    assert len(sampled) == 8
    assert all(
        first.output != second.output
        for first, second in zip(sampled[::2], sampled[1::2], strict=True)
    )
    assert max(oracle.gap(answer) for answer in sampled) < NATS


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no-overlap"])
def test_abort_and_reuse(tiny: Path, oracle: Oracle, overlap: bool) -> None:
    """Red if a request that is aborted while it decodes still writes to its slot after a new
    request took it over. Two slots, so that the new ones cannot avoid them."""
    with server(tiny, max_running_requests=2, disable_overlap_schedule=not overlap) as http:
        for start in (600, 700, 800):
            streams = [open_stream(http, text(4, seed=start + i)) for i in range(2)]
            post(http, "/abort_request", {"abort_all": True}).close()
            fresh = [text(n, seed=start + 10 + n) for n in (1, 2, 6, 3)]
            with ThreadPoolExecutor(len(fresh)) as pool:
                assert_same(pool.map(functools.partial(complete, http), fresh), oracle)
            for stream in streams:
                assert b'"type":"abort"' in stream.read().replace(b" ", b"")


def post(http: Server, route: str, body: dict[str, Any]) -> HTTPResponse:
    headers = {"Content-Type": "application/json"}
    request = Request(http.base_url + route, json.dumps(body).encode(), headers)
    response: HTTPResponse = urlopen(request, timeout=60)
    return response


def open_stream(http: Server, prompt: list[int], **options: Any) -> HTTPResponse:
    """A request that is decoding: its first token has arrived, hundreds are to come."""
    sampling = {"temperature": 0, "max_new_tokens": 900, "ignore_eos": True}
    body = {"input_ids": prompt, "sampling_params": sampling, "stream": True, **options}
    response = post(http, "/generate", body)
    assert response.readline().startswith(b"data:")
    return response


def complete(http: Server, prompt: list[int]) -> Answer:
    sampling = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True}
    with post(http, "/generate", body) as response:
        return answer(prompt, json.load(response))
