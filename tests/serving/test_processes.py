"""Processes besides one scheduler: data parallel, extra HTTP workers, and no CPU environment."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from sglang_longcat.cpu.environment import CPU_ENV, tp_env
from tests import harness

PROMPT = "The water of the river"
NEW = 4
SAMPLING = {"temperature": 0, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def answer(tokenizer, greedy):
    return greedy(tokenizer.encode(PROMPT), NEW)


def post(url, body):
    """Over a connection of its own, so that any of the workers may answer."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def generate(base_url):
    body = {"text": PROMPT, "sampling_params": SAMPLING}
    return post(f"{base_url}/generate", body)["output_ids"]


NOW = {"type": "function", "function": {"name": "now"}}


def called_tools(base_url):
    """The names of the tools that an answer calls; a regular expression makes it call one."""
    body = {
        "model": "longcat",
        "messages": [{"role": "user", "content": "What time is it?"}],
        "tools": [NOW],
        "regex": "<longcat_tool_call>now\\n</longcat_tool_call>",
        "max_tokens": 64,
    }
    [choice] = post(f"{base_url}/v1/chat/completions", body)["choices"]
    return [call["function"]["name"] for call in choice["message"]["tool_calls"] or []]


def counted_tokens(base_url):
    """Where only the hook on SGLang's HTTP handler lets one token be one token."""
    body = {"model": "longcat", "input": "What time is it?", "max_output_tokens": 1}
    return post(f"{base_url}/v1/responses", body)["usage"]["output_tokens"]


def refused(base_url):
    """The status for a value that would end the scheduler."""
    body = {"text": PROMPT, "sampling_params": {"top_k": 2**31, "temperature": 0.5}}
    with pytest.raises(urllib.error.HTTPError) as error:
        post(f"{base_url}/generate", body)
    return error.value.code


def test_data_parallel(checkpoint, answer):
    """The controller and both schedulers register; requests go to the two in turn."""
    cores = {"SGLANG_CPU_OMP_THREADS_BIND": tp_env(2)["SGLANG_CPU_OMP_THREADS_BIND"]}
    with harness.server(checkpoint, dp_size=2, env=cores) as running:
        assert [generate(running.base_url) for _ in range(3)] == [answer] * 3
        assert running.log.count("is active: LongCat-Flash-Lite") == 2
        assert all(f" DP{rank}] Prefill batch" in running.log for rank in range(2))


def test_extra_http_workers(checkpoint, answer):
    """SGLang loads no plugins in these processes: the published config must reach them parsed,
    inside the server arguments, and parsers and hooks through the app that they import. `auto` is
    resolved before they start."""
    # Uvicorn kills a worker that has not answered for 10 s, while importing SGLang takes 20-30 s on
    # an idle core, and more than 120 s were seen beside a load of 35.
    patient = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "400"}
    workers = {
        "tokenizer_worker_num": 2,
        "tool_call_parser": "auto",
        "served_model_name": "longcat",
    }
    with harness.server(checkpoint, env=patient, timeout=400, **workers) as running:
        assert [generate(running.base_url) for _ in range(4)] == [answer] * 4
        assert [called_tools(running.base_url) for _ in range(8)] == [["now"]] * 8
        assert [counted_tokens(running.base_url) for _ in range(4)] == [1] * 4
        assert [refused(running.base_url) for _ in range(4)] == [400] * 4
        assert "Auto-detected --tool-call-parser as 'longcat'" in running.log
        assert running.log.count("Start multi-tokenizer worker process") == 2


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
