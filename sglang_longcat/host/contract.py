"""The contract with SGLang: the supported version, and the check that it is what we rely on.

`problems()` compares the table of `attributes.py` with the installed SGLang, so that an upstream
refactor stops the server at start-up, with its reason, instead of corrupting a run. The supported
version is the one that pyproject.toml pins; a test holds the two together.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sglang_longcat import env
from sglang_longcat.host.attributes import ATTRIBUTES, Needs

SUPPORTED = "==0.5.23"


@dataclass(frozen=True)
class Mismatch:
    """An attribute that is not as we need it."""

    target: str  # as in `attributes.py`
    name: str  # the part of it that is missing or has changed
    expected: str
    found: str

    def __str__(self) -> str:
        return f"sglang.srt.{self.target}: expected {self.expected}, found {self.found}"


def problems() -> list[str]:
    """One line per mismatch: the attribute, what we expect and what SGLang has. Empty: safe to
    register."""
    installed = version("sglang")
    if f"=={installed}" not in {SUPPORTED, f"=={env.try_sglang()}"}:
        return [f"sglang version: expected {SUPPORTED}, found {installed}"]
    return [str(mismatch) for mismatch in mismatches()]


def mismatches() -> list[Mismatch]:
    """The attributes that the installed SGLang does not have as we need them, of any version."""
    return [mismatch for needs in ATTRIBUTES for mismatch in _mismatches(needs)]


def _mismatches(needs: Needs) -> Iterator[Mismatch]:
    module_name, _, path = needs.target.partition(":")
    try:
        package = "sglang" if module_name.startswith("kernels.") else "sglang.srt"
        attribute: Any = importlib.import_module(f"{package}.{module_name}")
        for name in path.split("."):
            attribute = getattr(attribute, name)
    except (ImportError, AttributeError) as error:
        yield Mismatch(needs.target, error.name or path, "to exist", str(error))
        return
    if needs.parameters:
        parameters = inspect.signature(attribute).parameters
        missing = [name for name in needs.parameters if name not in parameters]
        if missing:
            expected, found = f"parameters {', '.join(missing)}", f"({', '.join(parameters)})"
            yield Mismatch(needs.target, attribute.__name__, expected, found)


def require() -> None:
    """Exit unless the installed SGLang is the one this release was tested with."""
    lines = problems()
    if lines:
        raise SystemExit(
            f"sglang-longcat: SGLang {version('sglang')} does not match this release:\n"
            + "\n".join(f"  {line}" for line in lines)
            + f"\nInstall the supported one (pip install 'sglang{SUPPORTED}') or a newer "
            "sglang-longcat, or set LONGCAT_DISABLE=1 to serve with SGLang's own model."
        )
