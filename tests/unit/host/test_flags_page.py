"""docs/flags.md sorts every flag of the installed SGLang, and says what code and tests say."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from sglang.srt.arg_groups.arg_utils import record_fields
from sglang.srt.server_args import ServerArgs

from sglang_longcat.host import refusals
from tests import ROOT

PAGE = ROOT / "docs" / "flags.md"
WHAT_TO_DO = (
    "Read where SGLang uses the flag, try it on a CPU against the oracle (tests/model), and give "
    "it a row in docs/flags.md: tested, refused, passed through with the reason why it cannot "
    "break this model, or not reaching the model. If it cannot work, add a row to "
    "sglang_longcat/host/refusals too."
)


def rows() -> Iterator[tuple[str, list[str], str]]:
    """(section, flags, second column) of each row of the page."""
    section = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| `"):
            flags, _, text = line.strip("| ").partition(" | ")
            yield section, re.findall(r"`([^`]+)`", flags), text


def on_page(*sections: str) -> list[str]:
    return [flag for section, flags, _ in rows() if section in sections for flag in flags]


@pytest.fixture(scope="module")
def options() -> dict[str, list[str]]:
    """Field of ServerArgs -> its spellings on the command line, the field's name if it has none."""
    parser = argparse.ArgumentParser(add_help=False)
    ServerArgs.add_cli_args(parser)
    found = {field.name: [field.name] for field in record_fields(ServerArgs)}
    for action in parser._actions:
        found[action.dest] = [*action.option_strings, *found.get(action.dest, [])]
    return found


@pytest.fixture(scope="module")
def fields(options: dict[str, list[str]]) -> dict[str, str]:
    """A spelling -> the field."""
    return {word: field for field, words in options.items() for word in words}


def test_every_flag_is_sorted(options: dict[str, list[str]]) -> None:
    """Red if SGLang gets a flag: nobody knows yet whether this model can be served with it."""
    sorted_ = set(on_page("Tested", "Refused", "Passed through", "Does not reach the model"))
    new = {field: words[0] for field, words in options.items() if not sorted_ & set(words)}
    assert not new, f"not in docs/flags.md: {sorted(new.values())}. {WHAT_TO_DO}"


def test_no_flag_is_left_over(fields: dict[str, str]) -> None:
    """Red if SGLang drops or renames a flag: then its refusal or its test must go or follow."""
    gone = [flag for _, flags, _ in rows() for flag in flags if flag not in fields]
    assert not gone, f"SGLang has no flag {gone}: remove or rename it in docs/flags.md"


def test_a_flag_has_one_place(fields: dict[str, str]) -> None:
    """A flag of which some values are refused also stands where the other values belong."""
    for sections in (("Tested", "Passed through", "Does not reach the model"), ("Refused",)):
        counts = Counter(fields[flag] for flag in on_page(*sections))
        assert [flag for flag, count in counts.items() if count > 1] == []
    assert not set(on_page("Refused")) & set(on_page("Does not reach the model"))


def test_a_tested_flag_is_in_its_test(
    options: dict[str, list[str]], fields: dict[str, str]
) -> None:
    """Red if a test is moved or loses the flag."""
    for section, flags, text in rows():
        if section == "Tested":
            code = (ROOT / text.strip("`")).read_text()
            lost = [flag for flag in flags if not any(w in code for w in options[fields[flag]])]
            assert lost == [], text


def test_the_page_names_what_is_refused(fields: dict[str, str]) -> None:
    """Red if a table of refusals gets a row that an operator does not find, or loses one."""
    tables = (*refusals.ALWAYS, *refusals.RESOLVED, *refusals.WITH_SPECULATION)
    refused = {flag for row in tables for flag in re.findall(r"--[a-z0-9-]+", row.flag)}
    assert {fields[flag] for flag in refused} == {fields[flag] for flag in on_page("Refused")}


def test_files_that_a_reason_names_exist() -> None:
    for section, _, text in rows():
        for path in re.findall(r"`((?:tests|sglang_longcat)/[^`]+)`", text):
            assert (ROOT / path).exists(), f"{section}: {path}"
