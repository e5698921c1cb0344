"""The table of what moved, in Markdown. Owns: its columns."""

from __future__ import annotations

from collections.abc import Iterable

COLUMNS = {
    "attribute": "attribute",
    "expected": "we need",
    "found": "this version has",
    "elsewhere": "the name is defined in",
    "used": "we use it in",
}


def table(version: str, moved: list[dict[str, str]]) -> str:
    """A heading with the count, then one row for each attribute that is not as we need it."""
    heading = f"SGLang {version}: {len(moved)} attributes differ"
    if not moved:
        return heading
    lines = [heading, "", row(COLUMNS.values()), row("---" for _ in COLUMNS)]
    return "\n".join([*lines, *(row(entry[key] for key in COLUMNS) for entry in moved)])


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
