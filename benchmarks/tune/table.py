"""The tables of tuned configurations: what the tuners of kernels for few tokens write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Entries = Mapping[str, Any]  # number of tokens -> configuration, None: call the library


def write(path: Path, tuned: Mapping[str, Entries], shipped: Path) -> None:
    """`shipped` with the tuned entries, a line each. Entries that were not tuned stay."""
    table: dict[str, dict[str, Any]] = json.loads(shipped.read_text())
    for key, entries in tuned.items():
        table[key] = {**table.get(key, {}), **entries}
    blocks = []
    for key, entries in table.items():
        lines = ",\n".join(f'    "{t}": {json.dumps(config)}' for t, config in entries.items())
        blocks.append(f'  "{key}": {{\n{lines}\n  }}')
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
