"""A request that cannot be served gets an HTTP 4xx with the reason, and the next one is served.

Upstream checks lengths and sampling parameters; token ids, empty texts, embeddings and beams are
refused by `sglang_longcat/hooks`, without which each of them kills the scheduler or is answered
wrongly. The server starts with --disable-radix-cache, since SGLang refuses embeddings otherwise.
"""

import json
import urllib.error
import urllib.request

import pytest

from tests import harness

PROMPT = [5, 6, 7, 8]
NEW = 3
VOCAB, CONTEXT = 2048, 1024


@pytest.fixture(scope="module")
def server(checkpoint):
    with harness.server(checkpoint, disable_radix_cache=True) as running:
        yield running


def post(server, path, body):
    """Status and text of the answer."""
    request = urllib.request.Request(
        server.base_url + path,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def still_serves(server, greedy):
    """After the test, an ordinary request must get the oracle's answer."""
    yield
    greedy_params = {"temperature": 0, "max_new_tokens": NEW}
    body = {"input_ids": PROMPT, "sampling_params": greedy_params}
    status, text = post(server, "/generate", body)
    assert status == 200, text
    assert json.loads(text)["output_ids"] == greedy(PROMPT, NEW)


TOO_LONG = [5] * (CONTEXT + 1)
GENERATE, COMPLETE, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
REFUSED = {
    "id = vocab size": (GENERATE, {"input_ids": [5, VOCAB]}, "Token id 2048 is outside"),
    "id far outside": (GENERATE, {"input_ids": [2**40, 5]}, "expected 0 to 2047"),
    "negative id": (GENERATE, {"input_ids": [5, -1]}, "Token id -1 is outside"),
    "one bad of two": (GENERATE, {"input_ids": [[5, 6], [VOCAB]]}, "Token id 2048"),
    "completion, id": (COMPLETE, {"prompt": [5, VOCAB]}, "Token id 2048 is outside"),
    "completion, ids": (COMPLETE, {"prompt": [[5], [-7]]}, "Token id -7 is outside"),
    "empty text": (GENERATE, {"text": ""}, "empty"),
    "empty ids": (GENERATE, {"input_ids": []}, "empty"),
    "completion, empty": (COMPLETE, {"prompt": ""}, "empty"),
    "chat, no messages": (CHAT, {"messages": []}, "empty"),
    "embeddings": (GENERATE, {"input_embeds": [[0.0] * 768] * 2}, "takes no embeddings"),
    "beams": (
        GENERATE,
        {"input_ids": PROMPT, "sampling_params": {"beam_width": 2, "n": 2}},
        "beam search",
    ),
    "too long": (GENERATE, {"input_ids": TOO_LONG}, "context length"),
    "completion, too long": (COMPLETE, {"prompt": TOO_LONG}, "context length"),
    "too many new": (COMPLETE, {"prompt": "a", "max_tokens": CONTEXT}, "context length"),
    "temperature": (CHAT, {"messages": USER, "temperature": -1}, "temperature"),
    "top_p": (CHAT, {"messages": USER, "top_p": 2}, "top_p"),
    "max_tokens": (CHAT, {"messages": USER, "max_tokens": -3}, "max_"),
    "logit_bias": (CHAT, {"messages": USER, "logit_bias": {"2048": 1}}, "logit_bias"),
    "role": (CHAT, {"messages": [{"role": "nobody", "content": "hi"}]}, "role"),
    "logprob of a bad id": (
        GENERATE,
        {"input_ids": PROMPT, "return_logprob": True, "token_ids_logprob": [VOCAB]},
        "token id 2048",
    ),
}


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize(("path", "body", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_reason(server, path, body, reason):
    """SGLang no longer calls our hook, calls it too late, or answers an abort otherwise."""
    status, text = post(server, path, {"model": "any", **body})
    assert 400 <= status < 500, text
    assert reason in text


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize(
    ("path", "body"),
    [(GENERATE, {"input_ids": [VOCAB]}), (COMPLETE, {"model": "any", "prompt": [VOCAB]})],
)
def test_a_stream_carries_the_error(server, path, body):
    """A stream's status is sent before the scheduler sees the request; its event has the code."""
    status, text = post(server, path, {**body, "stream": True})
    assert status == 200
    assert "Token id 2048 is outside" in text
    assert "400" in text


@pytest.mark.usefixtures("still_serves")
def test_the_last_id_of_the_vocabulary_is_served(server):
    status, text = post(server, GENERATE, {"input_ids": [0, VOCAB - 1]})
    assert status == 200, text
