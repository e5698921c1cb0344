"""The files around the code agree with SGLang and with each other."""

import importlib.metadata
import re
import tomllib

import pytest

from tests import ROOT

LOCK = (ROOT / "ci" / "constraints.txt").read_text().splitlines()
PINS = [line for line in LOCK if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_lock_holds_exact_versions_only():
    """A URL, a path of somebody's machine or an unpinned name must not get into the lock."""
    assert [pin for pin in PINS if not re.fullmatch(r"[\w.-]+==[\w.!+]+", pin)] == []
    names = [pin.partition("==")[0].lower() for pin in PINS]
    assert len(set(names)) == len(names)


def test_lock_holds_what_pyproject_pins():
    """A pin changed in one of the two files only: CI would test another set than users install."""
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["test"], *extras["dev"]]
    exact = [requirement for requirement in wanted if "==" in requirement]
    assert exact
    assert set(exact) <= set(PINS)


def test_installed_environment_is_the_lock():
    """The tests ran on what the lock says, so that a green run speaks about it."""
    pinned = dict(pin.split("==") for pin in PINS)
    assert {name: importlib.metadata.version(name) for name in pinned} == pinned


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "ci/README.md", ".ci/run"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_existing_commands_and_files(document):
    """A make target or a repository path that was renamed but is still advertised."""
    text = (ROOT / document).read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    advertised = re.findall(r"(?:^|`|\s\s)make ([a-z-]+)", text, flags=re.MULTILINE)
    assert set(advertised) <= set(targets)
    paths = re.findall(r"`((?:launch|ci|tests|kernels|sglang_longcat)/[\w./-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_profiling_names_our_kernels():
    """A kernel that was renamed cannot be found in a trace."""
    text = (ROOT / "docs" / "observability.md").read_text()
    named = set(re.findall(r"`(_\w+_kernel)`", text))
    sources = [path.read_text() for path in (ROOT / "kernels").rglob("_*.py")]
    assert named == {name for text in sources for name in re.findall(r"def (_\w+_kernel)\(", text)}
