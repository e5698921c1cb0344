"""The checkpoint's generation_config.json decides what a request leaves open, and only that."""

import pytest
from openai import OpenAI

from sglang_longcat.checkpoint.generation import SAMPLING
from tests import harness

ASK = [{"role": "user", "content": "Name three rivers of Europe."}]
DRAWS = 24


@pytest.fixture(scope="module")
def first_tokens(checkpoint):
    with harness.server(checkpoint) as running:
        client = OpenAI(base_url=f"{running.base_url}/v1", api_key="none", timeout=60)

        def draw(extra_body=None, **options):
            options = {"max_tokens": 1, "logprobs": True, "n": DRAWS, **options}
            answer = client.chat.completions.create(
                model="longcat", messages=ASK, extra_body=extra_body, **options
            )
            return [choice.logprobs.content[0].token for choice in answer.choices]

        yield draw


@pytest.fixture(scope="module")
def ranked(tokenizer, oracle):
    """The oracle's first tokens of an answer, best first."""
    ids = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    order = oracle(ids)[-1].argsort(descending=True).tolist()
    return [tokenizer.decode([token]) for token in order]


HOT = {"temperature": 20, "extra_body": {"repetition_penalty": 1}}  # nearly uniform


def test_default(first_tokens, ranked):
    """Draws from the four likeliest: SGLang's own default is the whole vocabulary."""
    drawn = set(first_tokens(**HOT))
    assert drawn <= set(ranked[: int(SAMPLING["top_k"])])
    assert len(drawn) > 1


def test_request_overrides(first_tokens, ranked):
    assert set(first_tokens(extra_body={"top_k": 1, "repetition_penalty": 1})) == {ranked[0]}
    wide = first_tokens(temperature=20, top_p=1, extra_body={"repetition_penalty": 1, "top_k": -1})
    assert len(set(wide)) > SAMPLING["top_k"]


@pytest.mark.parametrize(("source", "wanted"), [("model", SAMPLING), ("openai", {})])
def test_what_sglang_reads(checkpoint, source, wanted):
    """All four keys, under the names that SGLang looks for."""
    from sglang.srt.configs.model_config import ModelConfig

    from sglang_longcat.host import hf_config

    hf_config.register()
    config = ModelConfig(str(checkpoint), sampling_defaults=source)
    assert config.get_default_sampling_params() == wanted
