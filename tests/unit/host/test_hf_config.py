"""The `quantization_config` that SGLang sees of a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sglang.srt.layers.quantization import QUANTIZATION_METHODS

from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.config import ConfigError, read_quant
from sglang_longcat.host.hf_config import LongcatConfigForSGLang

BITS = {"bits": 4, "group_size": 128}


def config(quantization_config: Any) -> LongcatConfigForSGLang:
    published = json.loads(PUBLISHED_CONFIG.read_text())
    return LongcatConfigForSGLang(**published, quantization_config=quantization_config)


@pytest.mark.parametrize(
    ("parser", "raw"),
    [
        ("gptq", BITS | {"quant_method": "gptq"}),
        ("gptq_marlin", BITS | {"quant_method": "gptq", "desc_act": None}),
        ("awq", BITS | {"quant_method": "awq"}),
        ("awq", BITS | {"quant_method": "awq", "sym": True, "zero_point": None}),
        ("auto-round", BITS | {"quant_method": "auto-round"}),
        ("auto-round", BITS | {"quant_method": "auto-round", "packing_format": None}),
        ("auto-round", BITS | {"quant_method": "auto-round", "backend": "gptq:exllamav2"}),
        ("fp8", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    ],
)
def test_sglang_parses_what_we_serve(parser: str, raw: dict[str, Any]) -> None:
    """Red if a checkpoint starts by our reading, whose keys have defaults, and ends in SGLang's own
    parser, whose keys have none."""
    seen = config(raw)
    QUANTIZATION_METHODS[parser].from_config(seen.quantization_config)
    assert read_quant(seen.to_dict()) == read_quant({"quantization_config": raw})


@pytest.mark.parametrize("value", [None, {}])
def test_no_format(value: Any) -> None:
    """Red if SGLang looks for a format of no name."""
    assert config(value).quantization_config is None


def test_another_type() -> None:
    with pytest.raises(ConfigError, match="expected an object"):
        config([])
