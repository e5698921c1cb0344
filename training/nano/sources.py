"""Where LongCat-nano's text comes from: Python sources that ship with CPython and PyPI packages.

Owns: the list of packages with their licences, which of their files count as text, and the split
into training and held-out files. It reads installed files only. data.py turns them into tokens.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Pure-Python sources with prose in their docstrings, all under licences that allow redistribution.
PACKAGES = {
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "pandas": "BSD-3-Clause",
    "mpmath": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "click": "BSD-3-Clause",
    "fsspec": "BSD-3-Clause",
    "prompt_toolkit": "BSD-3-Clause",
    "rich": "MIT",
    "setuptools": "MIT",
    "pydantic": "MIT",
    "anyio": "MIT",
    "urllib3": "MIT",
}
# Tables of numbers, copies of other projects (under other licences), and tests of literal data.
_SKIPPED_PARTS = {"test", "tests", "testing", "encodings", "site-packages", "dist-packages"}
_SKIPPED_PARTS |= {"_vendor", "_distutils", "externals", "lib-dynload", "config", "idlelib"}
_MAX_BYTES = 300_000  # larger files are generated, except pydoc_data/topics.py, which is prose
_MAX_DIGITS = 0.12  # share of characters
_HELD_OUT = 40  # one file in this many is held out


@dataclass(frozen=True)
class Source:
    """One file. `path` is relative to the parent of its package, so the split is the same
    everywhere."""

    package: str
    path: str
    text: str

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.path.encode()).digest()
        return int.from_bytes(digest[:4], "big") % _HELD_OUT == 0


def sources() -> list[Source]:
    """All files, in a fixed order, no text twice."""
    seen: set[str] = set()
    unique = []
    for source in _all_sources():
        digest = hashlib.sha256(source.text.encode()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            unique.append(source)
    return unique


def provenance(files: list[Source]) -> list[dict[str, object]]:
    """Per package: version, licence, files and bytes, and how many of these are held out."""
    rows = []
    for package in ("cpython", *PACKAGES):
        own = [file for file in files if file.package == package]
        held = [file for file in own if file.held_out]
        rows.append(
            {
                "package": package,
                "version": _version(package),
                "licence": PACKAGES.get(package, "PSF-2.0"),
                "files": len(own),
                "bytes": _bytes(own),
                "held_out_files": len(held),
                "held_out_bytes": _bytes(held),
            }
        )
    return rows


def _all_sources() -> Iterator[Source]:
    yield from _files(Path(sysconfig.get_path("stdlib")), package="cpython")
    for package in PACKAGES:
        yield from _files(Path(sysconfig.get_path("purelib")) / package, package=package)


def _files(root: Path, *, package: str) -> Iterator[Source]:
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if _SKIPPED_PARTS.intersection(relative.parts) or file.name.startswith("test_"):
            continue
        text = file.read_text(encoding="utf-8", errors="ignore")
        if _is_text(text, generated=len(text) > _MAX_BYTES and file.name != "topics.py"):
            yield Source(package=package, path=f"{package}/{relative.as_posix()}", text=text)


def _is_text(text: str, *, generated: bool) -> bool:
    digits = sum(map(str.isdigit, text))
    return not generated and len(text) > 200 and digits < _MAX_DIGITS * len(text)


def _version(package: str) -> str:
    return (
        platform.python_version() if package == "cpython" else importlib.metadata.version(package)
    )


def _bytes(files: list[Source]) -> int:
    return sum(len(file.text.encode()) for file in files)
