"""What each format's config.json says, and which formats are refused."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_longcat.config import ConfigError, read_quant
from sglang_longcat.quantisation import formats
from sglang_longcat.quantisation.packed import FormatError, PackedFormat

AUTO_ROUND = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "data_type": "int",
    "packing_format": "auto_round:auto_gptq",
    "block_name_to_quantize": "model.layers",
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "GEMM"}
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
    "ignore": ["lm_head"],
}
UP, O_PROJ = "model.layers.1.mlps.0.up_proj", "model.layers.11.self_attn.1.o_proj"
EXPERT = "model.layers.0.mlp.experts.7.down_proj"
REST = [O_PROJ, EXPERT]
DRAFT = "model.mtp.layers.0.self_attn.o_proj"


def compressed(**weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": WEIGHTS | weights}
    return COMPRESSED | {"config_groups": {"group_0": group}}


def left_out(raw: dict[str, Any]) -> list[str]:
    stored = formats.read(raw)
    return [module for module in (UP, O_PROJ, EXPERT, DRAFT) if not stored.quantises(module)]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (AUTO_ROUND, ("gptq", 128, True, 1)),
        (AUTO_ROUND | {"sym": False}, ("gptq", 128, False, 1)),
        (AUTO_ROUND | {"packing_format": "auto_round:auto_awq"}, ("awq", 128, True, 0)),
        (GPTQ, ("gptq", 64, True, 1)),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, ("gptq", 64, True, 0)),
        (GPTQ | {"format": "gptq_v2"}, ("gptq", 64, True, 0)),
        (AWQ, ("awq", 128, False, 0)),
        (COMPRESSED, ("compressed-tensors", 32, True, 0)),
        (compressed(symmetric=False, group_size=64), ("compressed-tensors", 64, False, 0)),
        (compressed(actorder="static"), ("compressed-tensors", 32, True, 0)),
        # as tools write that there is nothing of the kind
        (AUTO_ROUND | {"act_bits": 16, "super_bits": None}, ("gptq", 128, True, 1)),
        (
            COMPRESSED | {"sparsity_config": {"format": "dense"}, "transform_config": {}},
            ("compressed-tensors", 32, True, 0),
        ),
    ],
)
def test_description(raw: dict[str, Any], expected: tuple[str, int, bool, int]) -> None:
    """Red if a key is read under another name, or with another default than its tool has."""
    stored = formats.read(raw)
    found = stored.packing, stored.group_size, stored.symmetric, stored.zero_offset
    assert found == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        # by block; by name, exactly; by pattern, over the whole name
        (AUTO_ROUND, [DRAFT]),
        (AUTO_ROUND | {"block_name_to_quantize": None}, []),
        (
            AUTO_ROUND | {"block_name_to_quantize": ["model.layers.1.", "model.mtp"]},
            [O_PROJ, EXPERT],
        ),
        (
            AUTO_ROUND | {"block_name_to_quantize": [["model.layers.0"], ["model.mtp"]]},
            [UP, O_PROJ],
        ),
        (AUTO_ROUND | {"extra_config": {UP: {"bits": 16}}}, [UP, DRAFT]),
        (AUTO_ROUND | {"extra_config": {UP: {"bits": None}}}, [DRAFT]),
        (AUTO_ROUND | {"extra_config": {r".*experts\.\d+\..*": {"bits": 16}}}, [EXPERT, DRAFT]),
        (AUTO_ROUND | {"extra_config": {"experts": {"bits": 16}}}, [DRAFT]),
        # the first expression that matches from the start of the name
        (GPTQ, []),
        (GPTQ | {"dynamic": {r"-:.*self_attn": {}}}, [O_PROJ, DRAFT]),
        (GPTQ | {"dynamic": {r"+:.*\.up_proj": {"bits": 4}, "-:.*mlp": {}}}, [EXPERT]),
        (GPTQ | {"dynamic": {"-:self_attn": {}}}, []),
        (GPTQ | {"modules_in_block_to_quantize": [["self_attn.1.o_proj"]]}, [UP, EXPERT, DRAFT]),
        # anywhere in the name
        (AWQ | {"modules_to_not_convert": ["mtp", "experts"]}, [EXPERT, DRAFT]),
        # a dotted ending, or an expression from the start of the name
        (COMPRESSED, []),
        (COMPRESSED | {"ignore": ["up_proj", "1.o_proj"]}, [UP, O_PROJ]),
        (COMPRESSED | {"ignore": ["model.layers.1", "proj"]}, []),
        (COMPRESSED | {"ignore": [r"re:.*mlp\.experts", "re:mlps"]}, [EXPERT]),
    ],
)
def test_which_modules(raw: dict[str, Any], expected: list[str]) -> None:
    """Red if a module is taken for quantised that the checkpoint has in bf16, or the reverse."""
    assert left_out(raw) == expected


def test_named_targets() -> None:
    """Red if config_groups that name modules are taken for all layers."""
    group = {"targets": ["re:.*experts.*"], "weights": WEIGHTS}
    assert left_out(COMPRESSED | {"config_groups": {"group_0": group}}) == [UP, O_PROJ, DRAFT]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method 'bitsandbytes'"),
    ({"quant_method": "gguf"}, "quant_method 'gguf'"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_method 'modelopt'"),
    ({"quant_method": "mxfp4"}, "quant_method 'mxfp4'"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "quant_method 'fp8'"),
    ({}, "quant_method 'unknown'"),
    (AUTO_ROUND | {"bits": 2}, "auto-round with 2 bits"),
    (AUTO_ROUND | {"data_type": "nv_fp"}, "data_type 'nv_fp'"),
    (AUTO_ROUND | {"packing_format": "auto_round:llm_compressor"}, "'auto_round:llm_compressor'"),
    (
        AUTO_ROUND | {"extra_config": {UP: {"bits": 8}}},
        f"bits 8 for quantization_config.extra_config['{UP}']",
    ),
    (AUTO_ROUND | {"extra_config": {UP: {"group_size": 32}}}, "group_size 32"),
    (GPTQ | {"bits": 8}, "gptq with 8 bits"),
    (GPTQ | {"desc_act": True}, "act-order"),
    (GPTQ | {"sym": False}, "zero points"),
    (GPTQ | {"group_size": -1}, "groups of -1"),
    (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
    (
        GPTQ | {"dynamic": {"+:.*o_proj": {"bits": 8}}},
        "bits 8 for quantization_config.dynamic['+:.*o_proj']",
    ),
    (GPTQ | {"lm_head": True}, "quantised lm_head"),
    # what changes the meaning of weights without changing their names and shapes
    (AUTO_ROUND | {"quant_lm_head": True}, "quantised lm_head"),
    (AUTO_ROUND | {"act_bits": 8}, "act_bits 8"),
    (AUTO_ROUND | {"rotation_config": {"hadamard_type": "hadamard"}}, "rotation_config"),
    (AUTO_ROUND | {"extra_config": {UP: {"act_bits": 8}}}, "act_bits 8"),
    (AUTO_ROUND | {"extra_config": {UP: {"data_type": "nv_fp"}}}, "data_type 'nv_fp'"),
    (GPTQ | {"is_marlin_format": True}, "is_marlin_format True"),
    (GPTQ | {"format": "marlin"}, "checkpoint_format 'marlin'"),
    (GPTQ | {"rotation": "hadamard"}, "rotation 'hadamard'"),
    ({key: AWQ[key] for key in AWQ if key != "version"} | {"format": "gemv"}, "version 'gemv'"),
    (COMPRESSED | {"transform_config": {"config_groups": {"R4": {}}}}, "transform_config"),
    (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "'sparse-24-bitmask'"),
    (compressed(actorder=True), "act-order (actorder True)"),
    (compressed(actorder="dynamic"), "act-order (actorder 'dynamic')"),
    (AWQ | {"version": "gemv"}, "version 'gemv'"),
    (AWQ | {"zero_point": False}, "awq without zero points"),
    (AWQ | {"group_size": 16}, "groups of 16"),
    (COMPRESSED | {"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized'"),
    (COMPRESSED | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
    (compressed(num_bits=8), "8 bits"),
    (compressed(type="float"), "type 'float'"),
    (compressed(strategy="channel"), "strategy 'channel'"),
    (compressed(actorder="group"), "act-order"),
]


@pytest.mark.parametrize(("raw", "said"), REFUSED, ids=lambda value: str(value)[:50])
def test_refused_by_name(raw: dict[str, Any], said: str) -> None:
    """Red if a format starts that nobody has served, or if the message does not say which would."""
    with pytest.raises(ConfigError) as error:
        read_quant({"quantization_config": {"quant": 1} | raw})
    assert said in str(error.value)
    assert "which is not served. Served are bf16, block FP8" in str(error.value)


def test_activations_and_two_groups_are_refused() -> None:
    for change in (
        {"a": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": {"num_bits": 8}}},
        {
            "a": {"targets": ["re:.*experts.*"], "weights": WEIGHTS},
            "b": {"targets": ["Linear"], "weights": WEIGHTS | {"group_size": 128}},
        },
        {},
    ):
        with pytest.raises(FormatError):
            formats.read(COMPRESSED | {"config_groups": change})


@pytest.mark.parametrize(
    "raw",
    [
        GPTQ | {"dynamic": {"-:(": {}}},
        AUTO_ROUND | {"extra_config": {"(.*": {"bits": 16}}},
        COMPRESSED | {"ignore": ["re:("]},
    ],
)
def test_a_pattern_that_is_no_expression(raw: dict[str, Any]) -> None:
    """Red if it is found after the config was read, where nobody expects an error of it."""
    with pytest.raises(ConfigError, match=r"no regular expression"):
        read_quant({"quantization_config": raw})


@pytest.mark.parametrize("value", [None, {}])
def test_no_format(value: Any) -> None:
    assert read_quant({"quantization_config": value}) is None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (["auto-round"], "quantization_config is ['auto-round']; expected an object"),
        (False, "quantization_config is False; expected an object"),
        (AUTO_ROUND | {"bits": "4"}, "quantization_config.bits is '4'; expected an integer"),
        (AUTO_ROUND | {"sym": "true"}, "sym is 'true'; expected true or false"),
        (AUTO_ROUND | {"block_name_to_quantize": 5}, "expected a list of strings"),
        (AUTO_ROUND | {"extra_config": [UP]}, "extra_config is ["),
        (AUTO_ROUND | {"extra_config": {UP: 16}}, f"extra_config['{UP}'] is 16"),
        (GPTQ | {"dynamic": ["-:x"]}, "dynamic is ['-:x']; expected an object"),
        (GPTQ | {"dynamic": {"+:x": 8}}, "dynamic['+:x'] is 8"),
        (GPTQ | {"modules_in_block_to_quantize": "o_proj"}, "expected a list of strings"),
        (AWQ | {"modules_to_not_convert": "experts"}, "expected a list of strings"),
        (AWQ | {"modules_to_not_convert": [5]}, "expected a list of strings"),
        (COMPRESSED | {"config_groups": {"W4A16": ["Linear"]}}, "config_groups['W4A16'] is ["),
        (COMPRESSED | {"config_groups": [1]}, "config_groups is [1]"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "weight_block_size 128"),
    ],
    ids=lambda value: str(value)[-50:],
)
def test_values_of_another_type(raw: Any, said: str) -> None:
    """Red if one ends in a traceback, or is taken for something else: each letter of a string for a
    name of its own."""
    with pytest.raises(ConfigError) as error:
        read_quant({"quantization_config": raw})
    assert said in str(error.value)
    assert "Fix config.json" in str(error.value)


def test_bits_per_weight() -> None:
    """Red if scales or zero points are not counted."""
    assert PackedFormat("gptq", "gptq", 128, True).bits_per_weight == 4.125
    assert PackedFormat("awq", "awq", 32, False).bits_per_weight == 4.625
