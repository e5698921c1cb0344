"""A 4-bit checkpoint as an unquantised one in fp32, for the oracle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from sglang_longcat.checkpoint import packing
from sglang_longcat.checkpoint.headers import INDEX_NAME
from sglang_longcat.config import LongcatConfig

PARTS = ("qweight", "qzeros", "scales")


def dequantised(path: Path, to: Path) -> Path:
    """What our reader takes the files at `path` for, written to `to`."""
    quant = LongcatConfig.from_dir(path).quant
    assert quant is not None
    stored = quant.packed
    assert stored is not None
    shutil.copytree(path, to)
    places: dict[str, str] = {}
    for file in to.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith(".qweight")]:
            module = name.removesuffix(".qweight")
            parts = {part: tensors.pop(f"{module}.{part}") for part in PARTS}
            weight = packing.standard(parts, stored)
            tensors[f"{module}.weight"] = packing.dequantise(weight, stored.group_size)
        save_file(tensors, file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
    (to / INDEX_NAME).write_text(json.dumps({"weight_map": places}))
    config = json.loads((to / "config.json").read_text())
    del config["quantization_config"]
    (to / "config.json").write_text(json.dumps(config))
    return to
