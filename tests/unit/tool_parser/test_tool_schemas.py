"""A forced call obeys its schema, whatever the model writes: the grammar is sampled at random."""

import json
import random

import pytest
import xgrammar
from jsonschema import Draft202012Validator, FormatChecker

from sglang_longcat.tool_parser import structure
from sglang_longcat.tool_parser.parser import CallParser
from sglang_longcat.tool_parser.schema import characters
from tests.unit.tool_parser import tool_schemas
from tests.unit.tool_parser.test_tool_parser import joined

TAGS = ["<longcat_tool_call>", "</longcat_tool_call>", "<longcat_arg_key>", "</longcat_arg_key>"]
TAGS += ["<longcat_arg_value>", "</longcat_arg_value>"]
WORDS = [
    *map(chr, range(32, 127)),
    "\n",
    "\t",
    "é",
    "ö",
    "ß",
    "日",
    "🐱",
    *TAGS,
    "null",
    "true",
    "12",
]
END = len(WORDS)
COMPILER = xgrammar.GrammarCompiler(
    xgrammar.TokenizerInfo([word.encode() for word in WORDS] + [b"</s>"], stop_token_ids=[END])
)
# Each ends something, so that a random answer ends.
HEAVY = {'"': 12, "}": 3, "]": 9, "<": 2, ",": 2, "{": 2, "</longcat_arg_value>": 12}
# The package for time wants RFC 3339's rival; the others are read by the standard library.
FORMATS = FormatChecker(formats=["date", "ipv4", "ipv6", "uuid", "email"])


def allowed(matcher):
    mask = xgrammar.allocate_token_bitmask(1, END + 1)
    if not matcher.fill_next_token_bitmask(mask):
        return list(range(END + 1))
    words = mask[0].tolist()
    return [token for token in range(END + 1) if words[token // 32] >> (token % 32) & 1]


def sample(compiled, seed, longest=700):
    """A random answer that the grammar accepts; None if it did not end."""
    chance, matcher, text = random.Random(seed), xgrammar.GrammarMatcher(compiled), ""
    for at in range(longest):
        tokens = allowed(matcher)
        assert tokens, f"the grammar is stuck after {text!r}"
        if END in tokens:
            return text
        power = 1 if at < 150 else 3
        weights = [HEAVY.get(WORDS[token], 1) ** power for token in tokens]
        [token] = chance.choices(tokens, weights)
        assert matcher.accept_token(token)
        text += WORDS[token]
    return None


def samples(schema, count):
    tag = structure.structural_tag({"tool": schema}, at_least_one=True, parallel=False)
    compiled = COMPILER.compile_structural_tag(tag)
    return [text for seed in range(count) if (text := sample(compiled, seed)) is not None]


def arguments(text, schema):
    content, [(name, written)] = joined(
        (parser := CallParser({"tool": schema})).feed(text) + parser.finish()
    )
    assert (content, name) == ("", "tool")
    return json.loads(written)


@pytest.mark.parametrize("name", tool_schemas.OBEYED)
def test_random_calls_obey(name):
    """Turns red if xgrammar or the parser reads something otherwise."""
    schema = tool_schemas.OBEYED[name]
    validator = Draft202012Validator(schema, format_checker=FORMATS)
    texts = samples(schema, 25)
    assert len(texts) >= 5, "the random answers do not end"
    for text in texts:
        found = arguments(text, schema)
        assert validator.is_valid(found), (text, found, next(validator.iter_errors(found)).message)


@pytest.mark.parametrize(
    ("schema", "reason"), tool_schemas.REFUSED.values(), ids=tool_schemas.REFUSED
)
def test_refused_by_keyword(schema, reason):
    with pytest.raises(structure.ToolRefused) as raised:
        samples(schema, 1)
    assert "Tool 'tool'" in str(raised.value)
    assert reason in str(raised.value)
    assert 'tool_choice to "auto"' in str(raised.value)


def test_the_corpus_is_wide():
    assert len(tool_schemas.OBEYED) >= 60


def written(name, count=60):
    """Every argument `v` that was sampled for one schema of the corpus."""
    schema = tool_schemas.OBEYED[name]
    return {json.dumps(arguments(text, schema)["v"]) for text in samples(schema, count)}


@pytest.mark.parametrize(
    "name",
    ["enum with tags and spaces", "enum that looks like JSON", "string or null that looks like it"],
)
def test_every_value_of_an_enum_comes_back(name):
    """Bare or quoted: no value is lost, changed, or read as another type."""
    wanted = tool_schemas.OBEYED[name]["properties"]["v"]["enum"]
    assert written(name) == {json.dumps(value) for value in wanted}


@pytest.mark.parametrize("text", ["c080", "e08080", "f0808080", "eda080", "f4908080"])
@pytest.mark.parametrize("without", [[], [(0, 0x3000)], [(0, 0x20000)]])
def test_a_set_writes_utf8_only(text, without):
    """Red if a character of a limited string may be bytes that decode to several characters:
    overlong, a surrogate, or beyond the last code point."""
    written = characters.written(characters.complement(without))
    vocabulary = [bytes([byte]) for byte in range(256)]
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(vocabulary))
    matcher = xgrammar.GrammarMatcher(compiler.compile_regex(written))
    assert not all(matcher.accept_token(byte) for byte in bytes.fromhex(text))
