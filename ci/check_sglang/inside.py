"""What runs inside the scratch environment: `python -m ci.check_sglang.inside pins|compare`.

Prints one line of JSON, as its last. `pins`: the requirements of the installed SGLang that the
environment does not meet, except torch. `compare`: the attributes that are not as we need them,
each with the files of SGLang in which the same name is defined, and our files that use it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from ci.setup_env import ROOT


def main() -> None:
    result = {"pins": pins, "compare": compare}[sys.argv[1]]()
    print(json.dumps(result), flush=True)


# Packages with compiled parts that fit one torch only. Another torch would need all of them anew.
WITH_TORCH = {"torch", "torchaudio", "torchcodec", "torchvision"}


def pins() -> list[str]:
    wanted = [Requirement(line) for line in requires("sglang") or []]
    here = [each for each in wanted if not each.marker or each.marker.evaluate({"extra": ""})]
    return [
        f"{each.name}{each.specifier}"
        for each in here
        if not is_met(each) and each.name not in WITH_TORCH
    ]


def is_met(wanted: Requirement) -> bool:
    try:
        return wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False


def compare() -> list[dict[str, str]]:
    from sglang_longcat.host.contract import mismatches

    theirs, ours = sources(sglang_folder()), sources(ROOT / "sglang_longcat")
    return [
        {
            "attribute": each.target,
            "expected": each.expected,
            "found": each.found,
            "elsewhere": ", ".join(defining(each.name, theirs)),
            "used": ", ".join(using(each.name, ours)),
        }
        for each in mismatches()
    ]


def sglang_folder() -> Path:
    spec = find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def sources(folder: Path) -> dict[str, str]:
    """Text of each Python file, by its path in `folder`."""
    paths = sorted(folder.rglob("*.py"))
    return {
        name: path.read_text(errors="replace")
        for path in paths
        if not (name := str(path.relative_to(folder))).startswith("test/")
    }


def defining(name: str, files: dict[str, str], most: int = 3) -> list[str]:
    """Files that define a class, a function, a field or a constant of this name."""
    pattern = rf"^\s*(?:class |def |async def ){name}\b|^\s*{name}\s*[:=]"
    return list(matching(pattern, files))[:most]


def using(name: str, files: dict[str, str]) -> list[str]:
    table = "host/attributes.py"
    return [path for path in matching(rf"\b{name}\b", files) if path != table]


def matching(pattern: str, files: dict[str, str]) -> Iterator[str]:
    expression = re.compile(pattern, re.MULTILINE)
    return (path for path, text in files.items() if expression.search(text))


if __name__ == "__main__":
    main()
