"""Code for the processes of an engine: a plugin, which SGLang loads in each of them as ours.

Owns: the files that make a module's `register` a plugin. What the module does is its test's.
"""

from __future__ import annotations

from pathlib import Path


def plugin(folder: Path, name: str, source: str) -> dict[str, str]:
    """Environment of engines that call `register()` of `source`, a module's text."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{name} = {name}:register\n")
    return {"PYTHONPATH": str(folder)}
