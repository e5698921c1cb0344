"""A request that cannot be served gets an HTTP 4xx with the reason, and the next one is served.

Upstream checks lengths and some sampling parameters. `sglang_longcat/requests` refuses the rest,
and `sglang_longcat/hooks` empty texts and beams. Without them each of these kills the scheduler,
is answered wrongly or gets a 500. The server starts with --disable-radix-cache, since SGLang
refuses embeddings otherwise.
"""

import json
import urllib.request

import dill
import pytest

from tests import harness
from tests.serving.http import post

PROMPT = [5, 6, 7, 8]
NEW = 3
VOCAB, CONTEXT = 2048, 1024


@pytest.fixture(scope="module")
def server(checkpoint):
    with harness.server(
        checkpoint, disable_radix_cache=True, enable_custom_logit_processor=True
    ) as running:
        yield running


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
    "id = vocab size": (GENERATE, {"input_ids": [5, VOCAB]}, "[1] (also sent as prompt) is 2048"),
    "id far outside": (GENERATE, {"input_ids": [2**40, 5]}, "expected a token id from 0 to 2047"),
    "negative id": (GENERATE, {"input_ids": [5, -1]}, "is -1; expected a token id"),
    "one bad of two": (GENERATE, {"input_ids": [[5, 6], [VOCAB]]}, "input_ids[1][0]"),
    "completion, id": (COMPLETE, {"prompt": [5, VOCAB]}, "[1] (also sent as prompt) is 2048"),
    "completion, ids": (COMPLETE, {"prompt": [[5], [-7]]}, "is -7; expected a token id"),
    "empty text": (GENERATE, {"text": ""}, "empty"),
    "empty ids": (GENERATE, {"input_ids": []}, "empty"),
    "completion, empty": (COMPLETE, {"prompt": ""}, "empty"),
    "chat, no messages": (CHAT, {"messages": []}, "empty"),
    "more logprobs than tokens": (
        GENERATE,
        {"input_ids": PROMPT, "return_logprob": True, "top_logprobs_num": VOCAB + 1},
        "expected an integer from 0 to 2048",
    ),
    "chat, more logprobs": (
        CHAT,
        {"messages": USER, "logprobs": True, "top_logprobs": VOCAB + 1},
        "top_logprobs",
    ),
    "completion, more logprobs": (COMPLETE, {"prompt": "a", "logprobs": VOCAB + 1}, "logprobs"),
    "stop id, minimum": (
        GENERATE,
        {"input_ids": PROMPT, "sampling_params": {"stop_token_ids": [VOCAB], "min_new_tokens": 5}},
        "stop_token_ids[0] is 2048",
    ),
    "top_k of 2^31": (
        GENERATE,
        {"input_ids": PROMPT, "sampling_params": {"top_k": 2**31, "temperature": 0.5}},
        "top_k",
    ),
    "a list for one prompt": (
        GENERATE,
        {"input_ids": PROMPT, "return_logprob": True, "logprob_start_len": []},
        "logprob_start_len",
    ),
    "stop_regex": (
        GENERATE,
        {"input_ids": PROMPT, "sampling_params": {"stop_regex": "(a+)+b"}},
        "exponential",
    ),
    "10^9 samples": (
        GENERATE,
        {"input_ids": PROMPT, "sampling_params": {"n": 10**9}},
        "n is 1000000000; expected an integer from 1 to 1024",
    ),
    "a list of images": (GENERATE, {"input_ids": [[5], [6]], "image_data": [[]]}, "text only"),
    "response_format": (CHAT, {"messages": USER, "response_format": ["x"]}, "wrong type"),
    "reasoning parser": (
        "/separate_reasoning",
        {"text": "a", "reasoning_parser": "none"},
        "none",
    ),
    "embedding": ("/v1/embeddings", {"input": "a"}, "generates text"),
    "detokenize": ("/v1/detokenize", {"tokens": [[5], [-1]]}, "tokens[1][0] is -1"),
    "endless sleep": ("/slow_down", {"forward_sleep_time": 1e30}, "from -1 to 60"),
    "resume": ("/resume_memory_occupation", {}, "not released"),
    "release of what": ("/release_memory_occupation", {"tags": ["x"]}, "expected some of"),
    "tensors past the reader": (
        "/update_weights_from_tensor",
        {"serialized_named_tensors": [], "load_format": "direct"},
        "load_format is 'direct'; expected one of 'flattened_bucket'",
    ),
    "a trainer's tensors past the reader": (
        "/update_weights_from_distributed",
        {"names": [], "dtypes": [], "shapes": [], "load_format": "direct"},
        "load_format is 'direct'",
    ),
    "files past the reader": (
        "/update_weights_from_disk",
        {"model_path": "nowhere", "load_format": "npcache"},
        "load_format is 'npcache'",
    ),
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
        "token_ids_logprob[0] is 2048",
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
    """/generate sends a stream's status before it looks at the request; its event has the code."""
    status, text = post(server, path, {**body, "stream": True})
    assert status == (200 if path == GENERATE else 400)
    assert "is 2048; expected a token id" in text
    assert "400" in text


@pytest.mark.usefixtures("still_serves")
def test_the_last_id_of_the_vocabulary_is_served(server):
    status, text = post(server, GENERATE, {"input_ids": [0, VOCAB - 1]})
    assert status == 200, text


@pytest.mark.usefixtures("still_serves")
def test_no_samples_asked_is_one(server):
    """A null is a value left out."""
    params = {"n": None, "max_new_tokens": NEW}
    status, text = post(server, GENERATE, {"input_ids": PROMPT, "sampling_params": params})
    assert status == 200, text


class Raises:
    def __call__(self, logits, params):
        logits[:] = 0
        raise KeyError("nothing here")


class Shrinks:
    def __call__(self, logits, params):
        return logits[:, :5]


def sent(processor):
    """As SGLang's CustomLogitProcessor.to_str, but by value: the server cannot import this file."""
    processor.__module__ = "__main__"
    return json.dumps({"callable": dill.dumps(processor, recurse=True).hex()})


BAD_PROCESSORS = {
    "no JSON": ("x", "cannot be loaded"),
    "no code": (json.dumps({"callable": "00"}), "cannot be loaded"),
    "raises": (sent(Raises), "Raises failed: KeyError"),
    "another shape": (sent(Shrinks), "Shrinks failed: ValueError"),
}


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize(("processor", "told"), BAD_PROCESSORS.values(), ids=BAD_PROCESSORS)
def test_a_bad_processor_ends_its_own_request(server, processor, told):
    """Red if a client's code that cannot be loaded, raises or returns another shape ends more."""
    params = {"temperature": 0, "max_new_tokens": NEW}
    body = {"input_ids": PROMPT, "sampling_params": params, "custom_logit_processor": processor}
    status, text = post(server, GENERATE, body)
    assert status == 400, text
    assert told in text


@pytest.mark.usefixtures("still_serves")
def test_memory_in_use_is_not_released(server):
    """Red if a release ends the requests that run in that memory."""
    params = {"max_new_tokens": 200, "ignore_eos": True}
    body = {"input_ids": PROMPT, "sampling_params": params, "stream": True}
    asked = urllib.request.Request(
        server.base_url + GENERATE, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as stream:
        stream.readline()  # the first token
        status, text = post(server, "/release_memory_occupation", {})
        rest = stream.read().decode()
    assert status == 400, text
    assert "Requests are running" in text
    assert rest.endswith("data: [DONE]\n\n")


@pytest.mark.usefixtures("still_serves")
def test_a_release_without_a_memory_saver(server):
    """Red if it ends in SGLang's wait for a GPU, or counts as a release. Nothing would be freed."""
    for path in ("/release_memory_occupation", "/release_memory_occupation"):
        status, text = post(server, path, {})
        assert status == 400, text
        assert "--enable-memory-saver" in text
    status, text = post(server, "/resume_memory_occupation", {})
    assert status == 400
    assert "not released" in text
