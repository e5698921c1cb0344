"""The files around the code agree with SGLang and with each other."""

import importlib.metadata
import re
import tomllib

import pytest

from sglang_longcat import env, plugin
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


PAGES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "ci/README.md", ".ci/run", *PAGES]
FOLDERS = "launch|ci|tests|kernels|sglang_longcat|benchmarks|training|docs"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_existing_commands_and_files(document):
    """A make target, a module or a repository path that was renamed but is still advertised."""
    text = (ROOT / document).read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    advertised = re.findall(r"(?:^|`|\s\s)make ([a-z-]+)", text, flags=re.MULTILINE)
    assert set(advertised) <= set(targets)
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./*-]+)`", text)
    assert [path for path in paths if not list(ROOT.glob(path.rstrip("/")))] == []
    modules = re.findall(r"python -m\s((?:benchmarks|ci|training)[\w.]*)", text)
    assert [module for module in modules if not _is_module(module)] == []


def _is_module(name):
    path = ROOT / name.rstrip(".").replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name.endswith(".md")])
def test_links_lead_somewhere(document):
    """A page or a section that was renamed but is still linked."""
    page = ROOT / document
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [link for link in links if not _exists(page, link)] == []


def _exists(page, link):
    if "://" in link:
        return True
    name, _, section = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return False
    return not section or section in _sections(target.read_text())


def _sections(text):
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_index_links_every_page():
    """A page that no reader can find."""
    text = (ROOT / "docs" / "index.md").read_text()
    linked = {f"docs/{name}" for name in re.findall(r"\]\(([^)#]+\.md)\)", text)}
    assert set(PAGES) - {"docs/index.md"} <= linked
    assert "](docs/index.md)" in (ROOT / "README.md").read_text()


def test_readme_shows_the_activation_line(caplog, monkeypatch):
    """What a reader looks for in the log of a bf16 server on a GPU."""
    monkeypatch.setattr(plugin, "_cpu_parts", [])
    with caplog.at_level("INFO"):
        plugin.log_activation(
            ["ngram", *(name for name in env.OPTIONAL_OPS if not name.startswith("fp8_"))]
        )
    assert caplog.messages[0] in " ".join((ROOT / "README.md").read_text().split())


def test_profiling_names_our_kernels():
    """A kernel that was renamed cannot be found in a trace."""
    text = (ROOT / "docs" / "observability.md").read_text()
    named = set(re.findall(r"`(_\w+_kernel)`", text))
    sources = [path.read_text() for path in (ROOT / "kernels").rglob("_*.py")]
    assert named == {name for text in sources for name in re.findall(r"def (_\w+_kernel)\(", text)}
