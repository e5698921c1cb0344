"""The contract with SGLang is complete, holds on the installed one, and says what broke."""

import ast
import importlib
import tomllib

import pytest

from sglang_longcat import hooks
from sglang_longcat.cpu import experts, fp8, rope, speculative
from sglang_longcat.host import contract
from sglang_longcat.testing import dummy_routing, smaller_gpu
from sglang_longcat.tool_parser import reasoning_tokens
from tests import ROOT

PREFIX = "sglang.srt."
SOURCES = sorted((ROOT / "sglang_longcat").rglob("*.py"))


def test_installed_sglang_fits():
    assert contract.problems() == []


def test_supported_version_is_the_pinned_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"sglang{contract.SUPPORTED}" in project["dependencies"]


def refused():
    """The message with which the server would stop."""
    with pytest.raises(SystemExit) as error:
        contract.require()
    text = str(error.value)
    assert "sglang-longcat: SGLang 0.5." in text
    assert f"pip install 'sglang{contract.SUPPORTED}'" in text
    assert "LONGCAT_DISABLE=1" in text
    return text


def test_removed_attribute(monkeypatch):
    module = importlib.import_module("sglang.srt.layers.layer_boundary")
    monkeypatch.delattr(module, "append_stages")
    assert "sglang.srt.layers.layer_boundary:append_stages: expected to exist, found " in refused()


def test_removed_module(monkeypatch):
    gone = contract.Needs("models.longcat_flash_of_tomorrow:Model")
    monkeypatch.setattr(contract, "ATTRIBUTES", (gone,))
    text = refused()
    assert f"{PREFIX}{gone.target}: expected to exist, found No module named" in text


def test_renamed_parameter(monkeypatch):
    from sglang.srt.models import registry

    def import_model_classes(package, strict=False):
        pass

    monkeypatch.setattr(registry, "import_model_classes", import_model_classes)
    assert (
        "sglang.srt.models.registry:import_model_classes: expected parameters package_name, "
        "found (package, strict)"
    ) in refused()


def test_other_version(monkeypatch):
    """One line about the version, not dozens about its consequences."""
    monkeypatch.setattr(contract, "version", lambda _: "0.5.24")
    assert contract.problems() == ["sglang version: expected ==0.5.23, found 0.5.24"]
    assert "0.5.24 does not match this release" in refused()


def test_another_version_can_be_tried(monkeypatch):
    """Only the one that is named; its attributes are compared all the same."""
    monkeypatch.setattr(contract, "version", lambda _: "0.5.24")
    monkeypatch.setenv("LONGCAT_TRY_SGLANG", "0.5.25")
    assert contract.problems() == ["sglang version: expected ==0.5.23, found 0.5.24"]
    monkeypatch.setenv("LONGCAT_TRY_SGLANG", "0.5.24")
    assert contract.problems() == []
    gone = contract.Needs("models.longcat_flash_of_tomorrow:Model")
    monkeypatch.setattr(contract, "ATTRIBUTES", (gone,))
    assert len(contract.problems()) == 1


def needed(module, name):
    """True if the table names `name` of `module`, or something inside it."""
    for needs in contract.ATTRIBUTES:
        target_module, _, path = needs.target.partition(":")
        if target_module == module and path.split(".")[0] == name:
            return True
        if target_module == f"{module}.{name}":  # `from package import module`
            return True
    return False


def type_checking_lines(tree):
    """Lines under `if TYPE_CHECKING:`, which never run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            for statement in node.body:
                yield from range(statement.lineno, statement.end_lineno + 1)


def imports(path):
    """(module, name) of every `from sglang... import ...` that runs; a plain import is an error."""
    tree = ast.parse(path.read_text())
    skipped = set(type_checking_lines(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("sglang.")], (
                path
            )
        if not isinstance(node, ast.ImportFrom) or node.lineno in skipped:
            continue
        if (node.module or "").startswith(PREFIX):
            yield from ((node.module.removeprefix(PREFIX), alias.name) for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_imported_name_is_in_the_table(path):
    assert [pair for pair in imports(path) if not needed(*pair)] == []


def test_imports_are_found_at_all():
    """The walk above must not pass by finding nothing."""
    assert sum(1 for path in SOURCES for _ in imports(path)) > 30


@pytest.mark.parametrize(
    "target",
    [
        *(hook.TARGET for hook in hooks.ALL),
        experts.TARGET,
        fp8.TARGET,
        rope.TARGET,
        *speculative.TARGETS,
        dummy_routing.TARGET,
        smaller_gpu.CAPACITY,
        reasoning_tokens.TARGET,
    ],
)
def test_every_hook_target_is_in_the_table(target):
    targets = {PREFIX + needs.target.replace(":", ".") for needs in contract.ATTRIBUTES}
    assert target in targets


def test_every_hook_file_is_listed():
    """A hook that nobody registers."""
    files = {path.stem for path in (ROOT / "sglang_longcat" / "hooks").glob("*.py")} - {"__init__"}
    assert {hook.__name__.rpartition(".")[2] for hook in hooks.ALL} == files
