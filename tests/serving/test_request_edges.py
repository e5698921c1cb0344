"""No request ends the server: absurd values in every field, beside streams that must not notice.

Nano, without and with speculation. `edges.py` has the fields and the values. What each
wrong value should be told is in tests/unit/requests.
"""

import itertools
import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_longcat.assets import nano
from sglang_longcat.testing.engine_flags import nextn
from tests import harness
from tests.serving.edges import CONTEXT, SESSION, VALUES, edges
from tests.serving.http import post

STREAM = {
    "input_ids": [5, 6],
    "stream": True,
    "sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True},
}
EXAMPLES = 100  # requests per server and test: 30 s on a core
EDGES = edges()


PLAIN = {"enable_custom_logit_processor": True}
GPU = {"device": "cuda", "dtype": "bfloat16", "disable_cuda_graph": False}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(PLAIN, id="plain"),
        pytest.param(nextn(), id="speculative"),
        pytest.param({**PLAIN, **GPU}, id="plain-gpu", marks=pytest.mark.gpu),
        pytest.param({**nextn(), **GPU}, id="speculative-gpu", marks=pytest.mark.gpu),
    ],
)
def server(request):
    with harness.server(
        nano(),
        spawn="device" in request.param,
        timeout=400,
        context_length=CONTEXT,
        tool_call_parser="longcat",
        reasoning_parser="longcat",
        **request.param,
    ) as running:
        opened = {"capacity_of_str_len": 1000, "session_id": SESSION}
        assert post(running, "/open_session", opened)[0] == 200
        yield running


def streamed(server):
    """The tokens of a healthy stream."""
    status, text = post(server, "/generate", STREAM)
    assert status == 200, text
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events[-1] == "[DONE]", text
    return json.loads(events[-2])["output_ids"]


@pytest.fixture(scope="module")
def healthy(server):
    return streamed(server)


def is_small(edge, value):
    """Whether a machine of two cores can serve it: `n` and the like multiply a request."""
    counts = edge.field in ("n", "best_of", "beam_width")
    return not (counts and type(value) is int and 17 < value <= 1024)


def assert_answered(server, edge, value):
    # A GPU's first request that samples waits for a compiler: 60 s with a cold cache.
    status, text = post(server, edge.path, edge.with_value(value), timeout=300)
    assert 200 <= status < 500, f"{edge.path} {edge.field}={value!r:.80} got {status}: {text:.400}"


def test_an_ordinary_score(server):
    """Red if a check or a hook takes from /v1/score what it reads of an answer without tokens."""
    body = {"model": "m", "query": [5], "items": [[6], [7]], "label_token_ids": [8, 9]}
    status, text = post(server, "/v1/score", body)
    assert status == 200, text
    assert [len(scores) for scores in json.loads(text)["scores"]] == [2, 2]


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edge=st.sampled_from(EDGES), value=st.sampled_from(VALUES) | st.integers() | st.text())
def test_alone(server, healthy, edge, value):
    """Red on a request that ends the server, gets a 5xx, or changes what comes after it."""
    if is_small(edge, value):
        assert_answered(server, edge, value)
        assert streamed(server) == healthy


def test_beside_healthy_streams(server, healthy):
    """Red on a request that ends or changes the streams that run at the same time."""
    done, wrong, seen = threading.Event(), [], []

    def stream():
        while not done.is_set():
            tokens = streamed(server)
            seen.append(tokens)
            if tokens != healthy:
                wrong.append(tokens)

    thread = threading.Thread(target=stream)
    thread.start()
    step = 1009  # a prime: through all pairs, in no order
    pairs = list(itertools.product(EDGES, VALUES))
    try:
        for edge, value in (pairs[i * step % len(pairs)] for i in range(EXAMPLES)):
            if is_small(edge, value):
                assert_answered(server, edge, value)
    finally:
        done.set()
        thread.join(timeout=60)
    assert seen
    assert not wrong
