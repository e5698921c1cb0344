"""Prefill on one GPU and decode on another, through NIXL and SGLang's real router. A machine with a
single GPU runs all workers on it, and the KV cache goes from one process to another.

    make test-gpu ARGS=tests/model/test_disaggregation_gpu.py

Owns: LongCat-nano behind a router, with and without drafts, and the loss of a prefill worker. All
servers and routers start at once, and all tests share them. On a CPU the same tests take the
transport of `test_disaggregation`, and are skipped where the router is not installed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from launch.gpus import gpu_of
from sglang_longcat.assets import nano
from sglang_longcat.testing.engine_flags import nextn
from tests.harness import Server, free_port, server
from tests.harness.router import Router, router
from tests.model.scoring import EOS, Answer, Oracle, text
from tests.model.test_disaggregation import ENV
from tests.model.test_lost_workers import LIMIT, LOOK_OFTEN, Prefill, answered, chunks, wait_until
from tests.model.test_lost_workers import Router as Direct
from tests.model.test_modes_gpu import assert_right_tokens
from tests.serving.http import post

NEW = 16  # tokens of an answer
DECODING = "Decode batch"  # the log of a decode worker, every 40 steps


@dataclass(frozen=True)
class Arm:
    """tie, nats: as in `test_modes_gpu`. long: tokens of an answer that outlives a worker."""

    backend: str
    packages: tuple[str, ...]
    tie: float
    nats: float
    long: int
    on_gpus: bool
    env: dict[str, str] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)

    def environment(self, gpu: int) -> dict[str, str]:
        if not self.on_gpus:
            return LOOK_OFTEN | self.env
        return LOOK_OFTEN | self.env | {"CUDA_VISIBLE_DEVICES": gpu_of(gpu)}


CPU = Arm("mooncake", ("sglang_router",), tie=1e-3, nats=1e-4, long=200, on_gpus=False, env=ENV)
GPU = Arm(
    "nixl",
    ("sglang_router", "nixl"),
    tie=1.0,
    # In bf16 on a CPU 0.01 (ci/accuracy/thresholds.toml). Without the predecessors that come with a
    # request, 0.13, and 0.33 for the first four tokens.
    nats=0.05,
    long=1800,  # some seconds
    on_gpus=True,
    # Only the prefill worker's address, which the decode worker asks. UCX has its own.
    env={"SGLANG_HOST_IP": "127.0.0.1"},
    flags={
        "device": "cuda",
        "dtype": "bfloat16",
        "disable_cuda_graph": False,
        "cuda_graph_max_bs_decode": 8,
        "mem_fraction_static": 0.9,  # up to five servers are measured by what the others leave
        "max_total_tokens": 16384,
        "context_length": 2048,
        "spawn": True,
        "timeout": 400,
    },
)
ARMS = [pytest.param(CPU, id="cpu"), pytest.param(GPU, id="cuda", marks=pytest.mark.gpu)]

# Name -> GPU, and flags of its own. `lost` takes one token at a time, so that it has work left when
# it is killed.
PREFILL: dict[str, dict[str, Any]] = {
    "plain": {},
    "lost": {"chunked_prefill_size": 1},
    "drafting": nextn(3),
}
DECODE: dict[str, dict[str, Any]] = {"decode": {}, "speculative": nextn(3)}
# Name -> prefill workers and decode worker.
ROUTERS = {
    "two prefill workers": (("plain", "lost"), "decode"),
    "drafts of the decode worker": (("plain",), "speculative"),
    "drafts of both workers": (("drafting",), "speculative"),
}

# By default the router asks a worker once a minute, and counts it as lost after three minutes. With
# two failures in 4 s it gave up a worker that shared 16 cores with the starts of other servers.
ROUTER_FLAGS = ["--policy", "round_robin"]
ROUTER_FLAGS += ["--health-check-interval-secs", "2", "--health-failure-threshold", "6"]


@dataclass(frozen=True)
class Fleet:
    arm: Arm
    bootstrap: dict[str, int]  # ports of the prefill workers
    workers: dict[str, Server]
    routers: dict[str, Router]

    def logs(self) -> str:
        """The ends of all of them, for a request that got no answer."""
        processes = self.workers | self.routers
        return "\n".join(f"--- {name}\n{each.log[-4000:]}" for name, each in processes.items())


def distinct_ports(count: int) -> list[int]:
    """Ports that are bound only after all of them are chosen."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


@pytest.fixture(scope="module", params=ARMS)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    arm: Arm = request.param
    for package in arm.packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; docs/recipes.md has the command")
    names = [*PREFILL, *DECODE]
    ports = distinct_ports(len(names) + len(PREFILL) + 2 * len(ROUTERS))
    http = {name: ports.pop() for name in names}
    bootstrap = {name: ports.pop() for name in PREFILL}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in http.items()}
    common: dict[str, Any] = arm.flags | {"disaggregation_transfer_backend": arm.backend}
    starting: dict[str, Any] = {}
    for gpu, (mode, group) in enumerate((("prefill", PREFILL), ("decode", DECODE))):
        for name, own in group.items():
            starting[name] = server(
                nano(),
                env=arm.environment(gpu),
                port=http[name],
                disaggregation_mode=mode,
                # A decode worker opens none.
                disaggregation_bootstrap_port=bootstrap.get(name, 8998),
                **common,
                **own,
            )
    for name, (prefill, decode) in ROUTERS.items():
        starting[name] = router(
            [(urls[each], bootstrap[each]) for each in prefill],
            [urls[decode]],
            *ROUTER_FLAGS,
            ports=(ports.pop(), ports.pop()),
        )
    with ExitStack() as stack, ThreadPoolExecutor(len(starting)) as pool:
        begun = {name: pool.submit(stack.enter_context, each) for name, each in starting.items()}
        ready = {name: each.result() for name, each in begun.items()}
        workers = {name: ready[name] for name in names}
        yield Fleet(arm, bootstrap, workers, {name: ready[name] for name in ROUTERS})


@pytest.fixture(scope="module")
def nano_oracle() -> Oracle:
    return Oracle(nano())


def prompts() -> list[list[int]]:
    """Real text: whole prompts, beginnings around the n-gram order, an EOS near the end."""
    golden = [entry["prompt_ids"] for entry in read("golden.json")]
    windows = read("held_out.json")["windows"]
    heads = [window[:length] for length, window in enumerate(windows[:5], start=1)]
    ends = [
        [*window[: 9 - back], EOS, *window[9 - back : 8]]
        for back, window in enumerate(windows[5:9], start=1)
    ]
    return [*golden, *heads, *ends]


def read(name: str) -> Any:
    return json.loads((Path(nano()) / name).read_text())


def ask(fleet: Fleet, router: str, asked: list[list[int]]) -> list[Answer]:
    with ThreadPoolExecutor(len(asked)) as pool:
        sampling = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True}
        replies = [
            pool.submit(
                post,
                fleet.routers[router],
                "/generate",
                {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True},
                LIMIT,
            )
            for prompt in asked
        ]
        try:
            return [answered(prompt, reply) for prompt, reply in zip(asked, replies, strict=True)]
        except TimeoutError:
            pytest.fail(f"no answer within {LIMIT} s\n{fleet.logs()}", pytrace=False)


def assert_right(answers: list[Answer], oracle: Oracle, arm: Arm) -> None:
    """Tokens, and logprobs: of whole answers, and of the tokens whose n-grams reach back into the
    prompt."""
    assert all(len(each.output) == NEW for each in answers)
    assert_right_tokens(answers, oracle, arm.tie)
    gaps = [oracle.gaps(each) for each in answers]
    whole, first = (mean(gap for each in gaps for gap in each[:n]) for n in (NEW, 4))
    print(f"mean gap {whole:.2g} nats, of the first four tokens {first:.2g}")
    assert max(whole, first) < arm.nats


def test_tokens(fleet: Fleet, nano_oracle: Oracle) -> None:
    """Red if KV rows, or the predecessors of the first decoded tokens, are others after their way
    from one GPU to another, or if the router pairs two workers with different requests."""
    begun = {name: chunks(fleet.workers[name]) for name in ("plain", "lost")}
    answers = ask(fleet, "two prefill workers", prompts())
    assert_right(answers, nano_oracle, fleet.arm)
    for name, before in begun.items():
        assert chunks(fleet.workers[name]) > before, f"the prefill worker {name} got nothing"


@pytest.mark.parametrize("where", ["drafts of the decode worker", "drafts of both workers"])
def test_drafts(fleet: Fleet, nano_oracle: Oracle, where: str) -> None:
    """Red if the draft's KV is lost or put into a layer of the target, or if a window is hashed
    without the prompt's end."""
    answers = ask(fleet, where, prompts())
    assert_right(answers, nano_oracle, fleet.arm)
    accepted = mean(each.meta["spec_accept_length"] for each in answers)
    print(f"{accepted:.2f} tokens a step")
    assert accepted > 1.5


def test_a_lost_prefill_worker(fleet: Fleet, nano_oracle: Oracle) -> None:
    """Red if the loss of a prefill worker takes a request with it that has left it, or one that the
    router gets afterwards, or if a client of the lost one waits for ever or gets no reason. Comes
    last: the worker stays lost."""
    lost, decode = Prefill(fleet.workers["lost"], fleet.bootstrap["lost"]), fleet.workers["decode"]
    with ThreadPoolExecutor(16) as pool:
        direct, begun = Direct(pool), decode.log.count(DECODING)
        prompt = prompts()[0]
        decoding = direct.send(lost, decode, prompt, tokens=fleet.arm.long)[1]
        wait_until(lambda: decode.log.count(DECODING) > begun)
        victims = [direct.send(lost, decode, text(n, seed=n)) for n in (900, 100)]
        before = chunks(lost.http)
        wait_until(lambda: chunks(lost.http) > before + 3)
        assert not decoding.done(), "too short an answer: nothing was decoding"
        lost.http.close()
        answers = ask(fleet, "two prefill workers", prompts())
        for first, second in victims:
            assert first.result()[0] == 0, "the killed worker has answered"
            status, body = second.result()
            assert status == 500
            assert "Lost connection with prefill instance" in body
            assert f"127.0.0.1:{lost.port}" in body
        survivor = answered(prompt, decoding)
        answers += ask(fleet, "two prefill workers", prompts())
    assert len(survivor.output) == fleet.arm.long
    assert_right(answers, nano_oracle, fleet.arm)
    begin = replace(survivor, output=survivor.output[:400])  # the loss is among these
    assert_right_tokens([begin], nano_oracle, fleet.arm.tie)
