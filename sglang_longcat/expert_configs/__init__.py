"""Measured tile sizes of SGLang's expert GEMM for this model's shapes, in SGLang's file format.

There is one file per shape, GPU and dtype, with the name that SGLang gives it. Names that end in
`_down` are for the second GEMM. Owns: finding and reading a file. `benchmarks/tune/experts`
measures and writes the files, and `hooks/expert_configs.py` decides when ours are used.
"""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Configs = dict[int, dict[str, Any]]  # number of tokens -> tile sizes
_DOWN = "_down.json"

logger = logging.getLogger(__name__)


@functools.cache
def shipped(name: str) -> Configs | None:
    """The content of our file `name`; None if we have none for this GPU and shape.

    A second GEMM without a file of its own takes the sizes of the first GEMM, without USE_TMA: with
    it, SGLang would reorder the input of the second GEMM as well.
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
