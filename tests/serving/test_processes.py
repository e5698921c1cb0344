"""Processes besides one scheduler: data parallel, extra HTTP workers, and no CPU environment."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest

import harness
from sglang_longcat.cpu.environment import CPU_ENV, tp_env

PROMPT = "The water of the river"
NEW = 4
SAMPLING = {"temperature": 0, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def answer(tokenizer, greedy):
    return greedy(tokenizer.encode(PROMPT), NEW)


def generate(base_url):
    request = urllib.request.Request(
        f"{base_url}/generate",
        data=json.dumps({"text": PROMPT, "sampling_params": SAMPLING}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["output_ids"]


def test_data_parallel(checkpoint, answer):
    """The controller and both schedulers register; requests go to the two in turn."""
    cores = {"SGLANG_CPU_OMP_THREADS_BIND": tp_env(2)["SGLANG_CPU_OMP_THREADS_BIND"]}
    with harness.server(checkpoint, dp_size=2, env=cores) as running:
        assert [generate(running.base_url) for _ in range(3)] == [answer] * 3
        assert running.log.count("is active: LongCat-Flash-Lite") == 2
        assert all(f" DP{rank}] Prefill batch" in running.log for rank in range(2))


def test_extra_http_workers(checkpoint, answer):
    """SGLang loads no plugins in these processes; they need none as long as the published config
    reaches them inside the server arguments, already parsed."""
    # Uvicorn kills a worker that has not answered for 10 s, while importing SGLang takes 20-30 s.
    patient = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "120"}
    with harness.server(checkpoint, tokenizer_worker_num=2, env=patient) as running:
        assert [generate(running.base_url) for _ in range(4)] == [answer] * 4


def test_cpu_without_its_environment_stops_at_once(checkpoint):
    """`launch_server --device cpu` in a bare shell: the message has the command to type instead."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sglang.launch_server", "--device", "cpu"),
            *("--model-path", str(checkpoint), "--port", "1"),
        ],
        env={name: value for name, value in os.environ.items() if name not in CPU_ENV},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "--device cpu needs SGLANG_USE_CPU_ENGINE in the environment" in done.stderr
    assert "    SGLANG_USE_CPU_ENGINE=1 " in done.stderr
    assert f"sglang.launch_server --device cpu --model-path {checkpoint}" in done.stderr
