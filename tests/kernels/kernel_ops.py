"""The names of all operations: the folders of longcat_kernels that choose an implementation."""

from __future__ import annotations

from pathlib import Path

import longcat_kernels

OPS = sorted(
    path.parent.name
    for path in Path(longcat_kernels.__file__).parent.glob("*/__init__.py")
    if "use_triton" in path.read_text()
)
