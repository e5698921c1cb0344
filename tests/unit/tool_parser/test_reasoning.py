"""Where reasoning begins and ends, in text and in tokens, however an answer is split."""

import pytest
from transformers import PreTrainedTokenizerFast

from sglang_longcat import tool_parser
from sglang_longcat.assets import nano
from sglang_longcat.tool_parser.reasoning_tokens import ReasoningCounter
from sglang_longcat.tool_parser.scan import CALL, END_THINK, THINK

OPENING = "{% if add_generation_prompt %}<longcat_think>\n{% endif %}"
ANSWERS = [  # (text, reasoning, content)
    (f"{THINK}a b{END_THINK}c", "a b", "c"),
    (f"\n{THINK}a b{END_THINK}c", "a b", "c"),
    (f"{THINK}a b", "a b", ""),
    (f"{THINK}a b{CALL}f", "a b", f"{CALL}f"),
    ("a < b", "", "a < b"),
    (f"a {THINK}b{END_THINK}c", "", f"a {THINK}b{END_THINK}c"),
    ("<long", "", "<long"),
    ("", "", ""),
]
answers = pytest.mark.parametrize(("text", "reasoning", "content"), ANSWERS)


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(nano())


def parser(**options):
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    tool_parser.register()
    return ReasoningParser(tool_parser.NAME, **options)


@answers
@pytest.mark.parametrize("thinking", [False, True])
def test_whole_and_streamed(tokenizer, text, reasoning, content, thinking):
    """Red if text is lost, or if the answer to a request with thinking is reasoning without a tag.
    Nano's template opens no tag, so thinking changes nothing."""
    options = {"force_reasoning": thinking, "tokenizer": tokenizer}
    assert parser(**options).parse_non_stream(text) == (reasoning, content)
    for size in (1, 3, len(text) or 1):
        streaming = parser(**options)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        parts = [*map(streaming.parse_stream_chunk, pieces), streaming.parse_stream_end()]
        assert ["".join(part) for part in zip(*parts)] == [reasoning, content]


def test_a_template_that_opens_reasoning(tokenizer, monkeypatch):
    """Then an answer without a tag was cut off inside its reasoning."""
    monkeypatch.setattr(tokenizer, "chat_template", OPENING)
    options = {"force_reasoning": True, "tokenizer": tokenizer}
    assert parser(**options).parse_non_stream("a b") == ("a b", "")
    assert parser(**options).parse_non_stream(f"a b{END_THINK}c") == ("a b", "c")


def pieces(tokenizer, text, *, split_tags):
    """Tokens of `text`, with its tags as a token each, or as the many that a grammar writes."""
    if not split_tags:
        return tokenizer.encode(text, add_special_tokens=False)
    parts = [text[i : i + 2] for i in range(0, len(text), 2)]
    return [t for part in parts for t in tokenizer.encode(part, add_special_tokens=False)]


@answers
@pytest.mark.parametrize("split_tags", [False, True])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_tokens(tokenizer, text, reasoning, content, split_tags, window):
    """Red if a count depends on the window, misses a tag, or counts a token of the content."""
    output = pieces(tokenizer, text, split_tags=split_tags)
    counter, counts = ReasoningCounter(tokenizer, [1]), []
    for end in range(window, len(output) + window, window):
        counts.append(counter.count(output[:end]))
    if not reasoning:
        assert not any(counts)
    elif not content:
        assert counts[-1] == len(output)
    else:
        after = tokenizer.decode(output[counts[-1] :])
        less, more = sorted((content, after), key=len)  # a token may reach over a tag's edge
        assert more.endswith(less)
        assert len(more) - len(less) <= split_tags
        # A call's tag looks like reasoning until it is whole.
        assert CALL in text or sorted(counts) == counts


def test_tokens_beyond_a_stop_do_not_count(tokenizer):
    """SGLang counted the whole window: more reasoning than answer."""
    output = pieces(tokenizer, f"{THINK}a b c d{END_THINK}e", split_tags=False)
    for stop in range(1, len(output)):
        counter = ReasoningCounter(tokenizer, [1])
        counter.count(output[: max(1, stop - 3)])
        assert counter.count(output[:stop]) == min(stop, output.index(output[-2]) + 1)


def test_reasoning_that_the_prompt_opened(tokenizer):
    prompt = tokenizer.encode(f"Hello{THINK}\n", add_special_tokens=False)
    counter = ReasoningCounter(tokenizer, prompt)
    output = tokenizer.encode(f"a b{END_THINK}c", add_special_tokens=False)
    assert counter.count(output[:1]) == 1
    assert counter.count(output) == len(output) - 1
