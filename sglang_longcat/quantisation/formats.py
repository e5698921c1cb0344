"""`quantization_config` of AutoRound, GPTQ, AWQ and compressed-tensors, as a `PackedFormat`.

Owns: the keys of each format, and which of their values are refused, each by name. `fields` checks
their types. SGLang 0.5.23 reads the same keys (srt/layers/quantization: auto_round.py,
gptq/gptq.py, awq/awq.py, compressed_tensors/compressed_tensors.py), by whose rules modules are left
out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from sglang_longcat.quantisation.fields import Fields
from sglang_longcat.quantisation.packed import (
    BITS,
    GROUP_SIZES,
    FormatError,
    PackedFormat,
    Packing,
    Rule,
)

SERVED = (
    "Served are bf16, block FP8 (fp8 with weight_block_size), and 4 bits in groups of "
    f"{', '.join(map(str, GROUP_SIZES))}: auto-round (auto_round:auto_gptq, auto_round:auto_awq), "
    "gptq (symmetric, without act-order), awq (gemm), compressed-tensors (pack-quantized, W4A16)."
)
_UNQUANTISED_BITS = 16
_REGEX = frozenset("*+?^$()[]{}|\\")
_AUTO_ROUND_PACKINGS: dict[str, Packing] = {
    "auto_round:auto_gptq": "gptq",
    "auto_round:auto_awq": "awq",
}
# AutoRound's files have GPTQ's first version, which stores each zero point less one.
_ZERO_OFFSETS: dict[Packing, int] = {"gptq": 1, "awq": 0, "compressed-tensors": 0}

# Keys that change what the weights mean, with the values that do not. Tools add keys of other kinds
# with every release, so a key that is in no table is left alone.
_NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "auto-round": {
        "act_bits": (None, 16, 32),
        "data_type": (None, "int"),
        "desc_act": (None, False),
        "rotation_config": (None, {}),
        "static_kv_dtype": (None,),
        "super_bits": (None,),
        "super_group_size": (None,),
    },
    "gptq": {"is_marlin_format": (None, False), "pack_dtype": (None, "int32"), "rotation": (None,)},
    "awq": {"desc_act": (None, False)},
    "compressed-tensors": {"kv_cache_scheme": (None,), "transform_config": (None, {})},
}
_LM_HEAD = ("lm_head", "lm_head_quantized", "quant_lm_head")
# Keys that SGLang's own parsers fail without, or with values of other engines. Their objects are
# replaced by `layers.packed.PackedConfig`, so the values only have to pass.
_FOR_SGLANG: dict[str, dict[str, Any]] = {
    "auto-round": {"sym": True, "packing_format": "auto_round:auto_gptq"},
    "gptq": {"sym": True, "desc_act": False},
    "awq": {"zero_point": True},
    "fp8": {"activation_scheme": "dynamic"},
}


def read(quantization_config: Mapping[str, Any]) -> PackedFormat:
    """The 4-bit format that it describes. FormatError for any other."""
    raw = Fields.of(quantization_config)
    method = raw.text("quant_method", "unknown").lower()
    if method not in _READERS:
        refuse(f"quant_method {method!r}")
    if any(raw.flag(key, False) for key in _LM_HEAD):
        refuse(f"{method} with a quantised lm_head")
    _require_neutral(method, raw)
    stored = _READERS[method](raw)
    for rule in stored.rules:
        rule.check()
    return stored


def refuse(what: str) -> NoReturn:
    raise FormatError(f"The checkpoint's weights are {what}, which is not served. {SERVED}")


def for_sglang(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A `quantization_config` that `read` takes, as SGLang's own parsers take it."""
    method = str(raw.get("quant_method")).lower()
    given = {key: value for key, value in raw.items() if value is not None}
    full = _FOR_SGLANG.get(method, {}) | given
    return full | {"backend": "auto"} if method == "auto-round" else full


def _require_neutral(method: str, raw: Fields) -> None:
    for key, values in _NEUTRAL[method].items():
        value = raw.raw.get(key)
        if value not in values:
            refuse(f"{method} with {key} {value!r} in {raw.where}")


def _auto_round(raw: Fields) -> PackedFormat:
    _require_bits("auto-round", raw.integer("bits"))
    name = raw.text("packing_format", "auto_round:auto_gptq")
    packing = _AUTO_ROUND_PACKINGS.get(name)
    if packing is None:
        refuse(f"auto-round with packing_format {name!r}")
    blocks = _blocks(raw, "block_name_to_quantize") or _blocks(raw, "to_quant_block_names")
    return PackedFormat(
        method="auto-round",
        packing=packing,
        group_size=_group_size("auto-round", raw),
        symmetric=raw.flag("sym", True),
        zero_offset=_ZERO_OFFSETS[packing],
        rules=(
            *_auto_round_rules(raw),
            *(Rule(True, pattern=f"{re.escape(block.strip())}.*") for block in blocks),
        ),
        default=not blocks,
    )


def _blocks(raw: Fields, key: str) -> tuple[str, ...]:
    """Names with commas between them, or a list."""
    value = raw.raw.get(key)
    return tuple(value.split(",")) if isinstance(value, str) else raw.strings(key)


def _auto_round_rules(raw: Fields) -> Iterable[Rule]:
    """`extra_config`: whole names go before patterns."""
    names: dict[bool, list[str]] = {True: [], False: []}
    patterns = []
    for name, own in raw.objects("extra_config").items():
        quantised = (own.integer("bits") or BITS) < _UNQUANTISED_BITS
        if quantised:
            _require_same("auto-round", raw, own)
            _require_neutral("auto-round", own)
        if _REGEX & set(name):
            patterns.append(Rule(quantised, pattern=name))
        else:
            names[quantised].append(name)
    return [*(Rule(value, names=frozenset(of)) for value, of in names.items()), *patterns]


def _gptq(raw: Fields) -> PackedFormat:
    _require_bits("gptq", raw.integer("bits"))
    if raw.flag("desc_act", False):
        refuse("gptq with act-order (desc_act), whose fused layers cannot share one order")
    if not raw.flag("sym", True):
        refuse("gptq with zero points (sym false), for which SGLang has no kernel")
    version = _layout(raw, "gptq")
    if version not in ("gptq", "gptq_v2"):
        refuse(f"gptq with checkpoint_format {version!r}")
    return PackedFormat(
        method="gptq",
        packing="gptq",
        group_size=_group_size("gptq", raw),
        symmetric=True,
        zero_offset=int(version == "gptq"),
        rules=(
            *_gptq_rules(raw),
            # lists of module names inside a layer
            Rule(True, endings=frozenset(raw.strings("modules_in_block_to_quantize"))),
        ),
        default=not raw.strings("modules_in_block_to_quantize"),
    )


def _layout(raw: Fields, default: str) -> str:
    """GPTQModel's two names for it."""
    return raw.text("checkpoint_format", "") or raw.text("format", "") or default


def _gptq_rules(raw: Fields) -> Iterable[Rule]:
    """`dynamic`: "-:REGEX" leaves modules out, "+:REGEX" or "REGEX" gives them values of their
    own. The expression matches from the start of the name."""
    for key, value in raw.object("dynamic").raw.items():
        quantised = not key.startswith("-:")
        if quantised:
            own = Fields.of(value, f"{raw.where}.dynamic[{key!r}]")
            _require_same("gptq", raw, own)
        yield Rule(quantised, pattern=f"(?:{key.removeprefix('-:').removeprefix('+:')}).*")


def _awq(raw: Fields) -> PackedFormat:
    _require_bits("awq", raw.integer("bits"))
    version = raw.text("version", _layout(raw, "gemm"))
    if version.lower() != "gemm":
        refuse(f"awq of version {version!r}")
    if not raw.flag("zero_point", True):
        refuse("awq without zero points, for which SGLang has no kernel")
    parts = raw.strings("modules_to_not_convert")  # matched anywhere in the name
    return PackedFormat(
        method="awq",
        packing="awq",
        group_size=_group_size("awq", raw),
        symmetric=False,
        rules=tuple(Rule(False, pattern=f".*{re.escape(part)}.*") for part in parts),
    )


def _compressed_tensors(raw: Fields) -> PackedFormat:
    name = "compressed-tensors"
    sparsity = raw.object("sparsity_config").text("format", "dense")
    if sparsity != "dense":
        refuse(f"{name} with sparsity_config {sparsity!r}")
    groups = list(raw.objects("config_groups").values())
    weights = [group.object("weights") for group in groups]
    if not groups or any(other.raw != weights[0].raw for other in weights):
        refuse(f"{name} with {len(groups)} config_groups that differ; one is expected")
    _require_w4a16(raw, groups, weights[0])
    targets = [target for group in groups for target in group.strings("targets")]
    if not targets:
        refuse(f"{name} with config_groups that name no targets")
    return PackedFormat(
        method=name,
        packing="compressed-tensors",
        group_size=_group_size(name, weights[0]),
        symmetric=weights[0].flag("symmetric", True),
        rules=(*_named(False, raw.strings("ignore")), *_named(True, targets)),
        default="Linear" in targets,
    )


def _require_w4a16(raw: Fields, groups: list[Fields], weights: Fields) -> None:
    name = "compressed-tensors"
    for group in groups:
        form = group.text("format", "") or raw.text("format", "")
        if form != "pack-quantized":
            refuse(f"{name} of format {form!r}")
        for activations in ("input_activations", "output_activations"):
            if group.object(activations).raw:
                refuse(f"{name} with quantised activations ({activations})")
    _require_bits(name, weights.integer("num_bits"))
    kind, strategy = weights.text("type", "int"), weights.text("strategy", "group")
    if kind != "int" or strategy != "group":
        refuse(f"{name} of type {kind!r}, strategy {strategy!r}")
    order = weights.raw.get("actorder")
    if order not in (None, False, "static", "weight"):  # these two keep the order of the inputs
        refuse(f"{name} with act-order (actorder {order!r})")


def _named(quantised: bool, targets: Iterable[str]) -> Iterable[Rule]:
    """compressed-tensors: "re:REGEX" from the start of the name, or the end of a dotted name."""
    patterns = [target[3:] for target in targets if target.startswith("re:")]
    yield from (Rule(quantised, pattern=f"(?:{pattern}).*") for pattern in patterns)
    plain = frozenset(target for target in targets if not target.startswith("re:"))
    yield Rule(quantised, endings=plain)


def _require_bits(method: str, bits: int | None) -> None:
    if bits != BITS:
        refuse(f"{method} with {bits} bits")


def _group_size(method: str, raw: Fields) -> int:
    size = raw.integer("group_size")
    if size not in GROUP_SIZES:
        refuse(f"{method} with groups of {size} (-1: a scale for a whole row)")
    return size


def _require_same(method: str, raw: Fields, own: Fields) -> None:
    """Modules of their own bits, group size or symmetry would need parameters of their own."""
    for key, default in (("bits", None), ("group_size", None), ("sym", True), ("desc_act", False)):
        usual = raw.raw.get(key, default)
        value = own.raw.get(key)
        if value is not None and value != usual:
            refuse(f"{method} with {key} {value} for {own.where} and {usual} elsewhere")


_READERS: dict[str, Callable[[Fields], PackedFormat]] = {
    "auto-round": _auto_round,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
}
