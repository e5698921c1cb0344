"""Measured tile sizes of SGLang's expert GEMM for this model's shapes, in SGLang's file format.

One file per shape, GPU and dtype, named as SGLang names them; those that end in `_down` are for the
second GEMM. `benchmarks/tune/experts` measures and writes them. Owns finding and reading a file;
`hooks/expert_configs.py` decides when ours are used.
"""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Configs = dict[int, dict[str, Any]]  # by tokens
_DOWN = "_down.json"

logger = logging.getLogger(__name__)


@functools.cache
def shipped(name: str) -> Configs | None:
    """The file that SGLang calls `name`, None where we have none for this GPU and shape.

    A second GEMM without a file of its own takes the first one's sizes, loading as Triton does by
    default: SGLang would let USE_TMA of the first reorder the second's input as well.
    """
    path = FOLDER / name
    if path.is_file():
        logger.info("Expert GEMM: tile sizes of sglang-longcat, %s", name)
        return {int(tokens): config for tokens, config in json.loads(path.read_text()).items()}
    first = shipped(name.removesuffix(_DOWN) + ".json") if name.endswith(_DOWN) else None
    if first is None:
        return None
    return {
        tokens: {key: value for key, value in config.items() if key != "USE_TMA"}
        for tokens, config in first.items()
    }
