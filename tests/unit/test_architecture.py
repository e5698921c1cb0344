"""docs/architecture.md is true: its files exist, and hold the names that it gives them."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text()
PACKAGE = ROOT / "sglang_longcat"
# A table cell with a file, and the next one with a name in it.
PLACES = re.findall(r"\| `([\w./]+\.py)` \| `(\w+)` \|", TEXT)


def locate(path: str) -> Path:
    """From the repository's root, or from `sglang_longcat`."""
    return ROOT / path if (ROOT / path).exists() else PACKAGE / path


def exists(path: str) -> bool:
    """There, or, without a folder, in the folder of some operation."""
    kernels = ROOT / "kernels" / "longcat_kernels"
    return locate(path).exists() or ("/" not in path and any(kernels.glob(f"*/{path}")))


def names(path: str) -> set[str]:
    """Functions, classes and constants at the top of a file, and the methods of its classes."""
    defined: set[str] = set()
    for node in ast.parse(locate(path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        if isinstance(node, ast.ClassDef):
            defined |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    return defined


def test_every_file_exists():
    """A file that was moved but is still on the map, in text or drawing."""
    files = set(re.findall(r"[\w./]+\.py\b", TEXT))
    folders = set(re.findall(r"`([\w./]+/)`", TEXT))
    assert len(files) > 30
    assert sorted(path for path in files | folders if not exists(path)) == []


@pytest.mark.parametrize(("path", "name"), sorted(set(PLACES)))
def test_every_file_holds_the_name(path, name):
    """A function that was renamed but still answers a question there."""
    assert name in names(path)


def test_enough_questions_are_answered():
    """A table whose cells the pattern above no longer finds would check nothing."""
    questions = re.findall(r"^\| .*\? \| `", TEXT, flags=re.MULTILINE)
    answered = re.findall(r"^\| .*\? \| `[\w./]+\.py` \| `\w+` \|$", TEXT, flags=re.MULTILINE)
    assert len(questions) == len(answered) >= 12


def test_floors_are_those_of_import_linter():
    """A room that moved to another floor, or a new one that is not on the map."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    name = "imports go down the floors"
    [layers] = [each["layers"] for each in contracts["contracts"] if each["name"] == name]
    table = TEXT.partition("## The floors")[2].partition("\n## ")[0]
    floors: dict[int, set[str]] = {}
    number = 0
    for floor, cell in re.findall(r"^\| (\d*) ?\| (`[^|]+`) \|", table, flags=re.MULTILINE):
        number = int(floor or number)
        rooms = floors.setdefault(number, set())
        rooms |= {Path(room).stem for room in re.findall(r"`([^`]+)`", cell)}
    lowest_first = [{room.strip().split(".")[-1] for room in re.split("[|:]", f)} for f in layers]
    assert [floors[i] for i in sorted(floors)] == lowest_first[::-1]
