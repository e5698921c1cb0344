"""Which stop patterns are let through to the scheduler."""

import pytest

from sglang_longcat.requests.patterns import Pattern


def wrong(pattern):
    return [wrong.expected for wrong in Pattern().wrong("stop_regex", pattern, 0)]


@pytest.mark.parametrize(
    "pattern", [r"\d+\.", r"(foo|bar)\n+", r"[A-Z]{3}", r"(?:ab){2,5}", r"x(?=\n)", r"^$", r"(a)\1"]
)
def test_ordinary_patterns_pass(pattern):
    assert not wrong(pattern)


@pytest.mark.parametrize("pattern", ["(", "[", "*", r"\8", "(?P<x", "x" * 257, 5, None])
def test_what_does_not_compile_is_told(pattern):
    assert wrong(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(?:a?){30}a{30}", "((a*)b?)*c", "(?=(a+)+b)x", r"(a)(\1?)*b"]
)
def test_exponential_patterns_are_refused(pattern):
    """Red if the scheduler searches a pattern whose time doubles with each character."""
    assert "exponential time" in wrong(pattern)[0]
