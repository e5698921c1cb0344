"""A request with a high priority throws out one with a low priority, which comes back later.

Owns: preemption for lack of request slots, where the victim's slot goes to the newcomer at once.
Retraction for lack of KV memory is in `test_scheduling`.
"""

from __future__ import annotations

import json
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.harness import server
from tests.model.scoring import EOS, Answer, Oracle, answer, assert_same, text
from tests.model.test_scheduling import open_stream, post

SLOTS = 2
LONG = {"temperature": 0, "max_new_tokens": 160, "ignore_eos": True}
SHORT = LONG | {"max_new_tokens": 6}


def last_answer(prompt: list[int], stream: HTTPResponse) -> Answer:
    events = [line for line in stream.read().splitlines() if line.startswith(b"data: {")]
    return answer(prompt, json.loads(events[-1].removeprefix(b"data: ")))


@pytest.mark.parametrize(
    "flags",
    [
        {"chunked_prefill_size": 3},
        {"chunked_prefill_size": 3, "disable_overlap_schedule": True},
        {"chunked_prefill_size": 3, "disable_radix_cache": True},
    ],
    ids=["overlap", "no-overlap", "without-radix"],
)
def test_a_higher_priority_takes_the_slot(
    tiny: Path, oracle: Oracle, flags: dict[str, Any]
) -> None:
    """Red if the newcomer is hashed with what its victim's last, overlapped step wrote into the
    slot, or the victim, when it returns, without the output it already had."""
    with server(
        tiny,
        enable_priority_scheduling=True,
        priority_scheduling_preemption_threshold=0,
        max_running_requests=SLOTS,
        **flags,
    ) as http:
        prompts = [text(5, seed=900 + i) for i in range(SLOTS)]
        wanted = {"sampling_params": LONG, "return_logprob": True}
        streams = [
            open_stream(http, prompt, priority=priority, **wanted)
            for priority, prompt in enumerate(prompts)
        ]
        urgent = []
        for length in (1, 2, 3, 8):
            prompt = text(length, seed=920 + length)
            prompt[length // 2] = EOS
            body = {"input_ids": prompt, "sampling_params": SHORT, "priority": 5}
            with post(http, "/generate", {**body, "return_logprob": True}) as response:
                urgent.append(answer(prompt, json.load(response)))
        victims = [last_answer(prompt, stream) for prompt, stream in zip(prompts, streams)]
    assert victims[0].meta["num_retractions"], "nobody was thrown out: the test tests nothing"
    assert not any(newcomer.meta["num_retractions"] for newcomer in urgent)
    assert all(len(victim.output) == LONG["max_new_tokens"] for victim in victims)
    assert_same([*victims, *urgent], oracle)
