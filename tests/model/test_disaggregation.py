"""A prefill worker and a decode worker, token for token against the oracle.

Owns: requests that reach the decode worker with their KV, and their return from a retraction there.
Two real engines with SGLang's own scheduler loops, bootstrap server and mooncake KV managers; only
mooncake's TransferEngine, which moves the bytes, is replaced: see `transport`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Engine, engine, free_port
from tests.model.scoring import EOS, Answer, Oracle, answer, assert_same, text

TRANSPORT = Path(__file__).with_name("transport")
ENV = {
    "PYTHONPATH": str(TRANSPORT),
    "SGLANG_HOST_IP": "127.0.0.1",  # else SGLang announces this machine's outward address
    # Sends a cached prefix while the rest is computed, after a CUDA event.
    "SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX": "0",
}


@dataclass(frozen=True)
class Pair:
    prefill: Engine
    decode: Engine
    port: int
    rooms: Iterator[int]

    def ask(self, prompts: Sequence[list[int]], **sampling: Any) -> list[Answer]:
        """What a PD router does: the same requests to both, paired by their rooms."""
        rooms = list(itertools.islice(self.rooms, len(prompts)))
        request = {
            "input_ids": list(prompts),
            "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
            | sampling,
            "return_logprob": True,
            "bootstrap_host": ["127.0.0.1"] * len(prompts),
            "bootstrap_port": [self.port] * len(prompts),
            "bootstrap_room": rooms,
        }
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(self.prefill.generate, **request)
            replies = self.decode.generate(**request)
            first.result()
        return [answer(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]


@contextmanager
def pair(
    path: Path,
    *,
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    **both: Any,
) -> Iterator[Pair]:
    """Engines with the flags in `both`, and each its own."""
    port = free_port()
    common = {
        "env": ENV,
        "disaggregation_transfer_backend": "mooncake",
        "disaggregation_bootstrap_port": port,
        **both,
    }
    with (
        engine(path, **common, disaggregation_mode="prefill", **(prefill or {})) as first,
        engine(path, **common, disaggregation_mode="decode", **(decode or {})) as second,
    ):
        yield Pair(first, second, port, itertools.count(1))


def prompts(*, seed: int) -> list[list[int]]:
    """Lengths around the n-gram order, and an EOS at each of the last places."""
    plain = [text(length, seed=seed + length) for length in (1, 2, 3, 4, 5, 17)]
    cut = [text(9, seed=seed + 100 + back) for back in range(1, 6)]
    for back, prompt in enumerate(cut, start=1):
        prompt[-back] = EOS
    return [*plain, *cut, [EOS], [EOS] * 3]


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no-overlap"])
def test_first_decode_steps(tiny: Path, oracle: Oracle, overlap: bool) -> None:
    """Red if the decode worker hashes its first tokens with what the slot's last owner left there,
    or without the end of the prompt. Three slots, so that they are reused at once, and chunks of
    three tokens on the prefill side."""
    with pair(
        tiny,
        disable_overlap_schedule=not overlap,
        chunked_prefill_size=3,
        decode={"max_running_requests": 3, "disaggregation_decode_extra_slots": 0},
    ) as workers:
        for seed, new in ((0, 6), (1000, 1), (2000, 2)):
            assert_same(workers.ask(prompts(seed=seed), max_new_tokens=new), oracle)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no-overlap"])
def test_retraction_on_the_decode_side(tiny: Path, oracle: Oracle, overlap: bool) -> None:
    """Red if a request that was thrown out of the decode worker's full KV pool comes back, with its
    KV restored and into another slot, hashed without its own earlier output."""
    lengths = range(6, 12)
    with pair(
        tiny,
        disable_overlap_schedule=not overlap,
        decode={"max_total_tokens": 160, "num_reserved_decode_tokens": 1},
    ) as workers:
        # Two of them overflow the pool. On a slow machine one may end before the next comes:
        # then ask again.
        for seed in range(4000, 4500, 100):
            # ignore_eos would make SGLang reserve the whole output; this model never says EOS.
            answers = workers.ask(
                [text(length, seed=seed + length) for length in lengths],
                max_new_tokens=100,
                ignore_eos=False,
            )
            if "Retract" in workers.decode.log:
                break
        assert "Retract" in workers.decode.log, "nothing was retracted: the test tests nothing"
    assert all(len(answer.output) == 100 for answer in answers)
    assert_same(answers, oracle)


def test_prefix_kept_on_the_decode_side(tiny: Path, oracle: Oracle) -> None:
    """Red if a request of which the decode worker already holds a prefix, computed in another slot,
    is hashed without the prompt's end: prefixes of every length, an EOS near their ends."""
    base = text(24, seed=5000)
    for position in (8, 12, 13, 17):
        base[position] = EOS
    branches = [[*base[:cut], 1990 - cut, *text(1 + cut % 3, seed=cut)[1:]] for cut in range(1, 16)]
    with pair(
        tiny,
        prefill={"disable_radix_cache": True},  # cached tokens are the decode side's alone
        decode={"disaggregation_decode_enable_radix_cache": True},
    ) as workers:
        workers.ask([base])
        answers = workers.ask(branches)
    assert [answer.meta["cached_tokens"] for answer in answers] == list(range(1, 16))
    assert_same(answers, oracle)
