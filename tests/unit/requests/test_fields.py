"""Every field of SGLang's requests is in our tables, and wrong values are named."""

import dataclasses
import math

import pytest
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_longcat.requests.check import BadRequest, check_request
from sglang_longcat.requests.fields import REQUEST, SAMPLING

VOCAB = 4096
NESTED = [[[]]]
for _ in range(40):
    NESTED = [NESTED]


def test_every_field_of_sglang_is_in_the_tables():
    """Red when a new SGLang takes another field: decide its range, and add it to the table."""
    assert {field.name for field in dataclasses.fields(GenerateReqInput)} == set(REQUEST)
    assert set(SamplingParams.__struct_fields__) == set(SAMPLING)


def check(**fields):
    check_request(GenerateReqInput(**{"input_ids": [5, 6], **fields}), VOCAB)


def test_defaults_pass():
    """The values that SGLang itself fills in."""
    check(sampling_params=dict.fromkeys(SAMPLING))
    check(sampling_params={"temperature": 1, "top_p": 1, "top_k": -1, "n": 2, "stop": ["a", "b"]})


@pytest.mark.parametrize("prompt", [{"input_ids": [[5], [6, 7]]}, {"text": ["a", "b"]}])
def test_a_batch_passes(prompt):
    check(
        **{"input_ids": None, **prompt},
        rid=["x", "y"],
        sampling_params=[{"max_new_tokens": 1}, {}],
        top_logprobs_num=[0, VOCAB],
        token_ids_logprob=[[1], None],
        lora_path=[None, None],
    )


SAMPLED = {
    "top_k": 2**31,
    "n": 0,
    "max_new_tokens": -1,
    "temperature": math.nan,
    "top_p": math.inf,
    "min_p": "0.1",
    "logit_bias": {"5": math.nan},
    "stop_token_ids": [VOCAB],
    "stop_regex": "(",
    "stop": ["x"] * 33,
    "ignore_eos": "yes",
    "custom_params": {"a": 10**30},
    "stream_interval": 0,
    "is_normalized": True,
    "unheard_of": 1,
}


@pytest.mark.parametrize(("name", "value"), SAMPLED.items(), ids=SAMPLED)
def test_a_wrong_sampling_value_is_named(name, value):
    with pytest.raises(BadRequest) as error:
        check(sampling_params={"max_new_tokens": 4, name: value})
    assert str(error.value).startswith(f"sampling_params.{name}")
    assert "expected" in str(error.value)


WRONG = [
    ({"input_ids": [5, VOCAB]}, "input_ids[1] (also sent as prompt) is 4096; expected a token id"),
    ({"input_ids": [5, True]}, "input_ids[1]"),
    ({"input_ids": [[5], [6, -1]]}, "input_ids[1][1] (also sent as prompt) is -1"),
    ({"input_ids": None, "text": "\ud800"}, "text (also sent as prompt) is '\\ud800'"),
    ({"input_ids": None, "text": []}, "text (also sent as prompt) is []; expected at least one"),
    ({"text": ["x"]}, "input_ids (also sent as prompt) is [5, 6]; expected as many prompts"),
    ({"top_logprobs_num": VOCAB + 1}, "is 4097; expected an integer from 0 to 4096."),
    ({"top_logprobs_num": True}, "top_logprobs_num"),
    ({"logprob_start_len": []}, "a list of 0'; expected no list, for a single prompt"),
    ({"input_ids": [[5], [6]], "return_logprob": [True]}, "expected a list of 2, as prompts"),
    ({"input_ids": [[5], [6]], "return_logprob": [True, None]}, "return_logprob[1]"),
    ({"token_ids_logprob": [VOCAB]}, "token_ids_logprob[0]"),
    ({"session_params": {"offset": "a"}}, "session_params.offset"),
    ({"session_params": {"unheard_of": 1}}, "session_params.unheard_of"),
    ({"input_embeds": [[0.5]]}, "takes no embeddings"),
    ({"positional_embed_overrides": "x"}, "takes no embeddings"),
    ({"image_data": [["http://x"]]}, "the model reads text only"),
    ({"return_hidden_states": 1}, "expected one of True, False, 'last'"),
    ({"bootstrap_room": 10**30}, "bootstrap_room"),
    ({"http_worker_ipc": "x"}, "SGLang's own processes set it"),
    ({"kv_hints": {"a": NESTED}}, "at most 32 levels"),
    ({"external_trace_header": {"a": "\ud800"}}, "external_trace_header.a"),
]


@pytest.mark.parametrize(("fields", "told"), WRONG, ids=[str(told) for _, told in WRONG])
def test_a_wrong_value_is_named(fields, told):
    with pytest.raises(BadRequest) as error:
        check(**fields)
    assert told in str(error.value)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(BadRequest) as error:
        check(sampling_params={"temperature": "x" * 10_000})
    assert len(str(error.value)) < 300
