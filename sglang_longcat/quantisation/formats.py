"""`quantization_config` of AutoRound, GPTQ, AWQ and compressed-tensors, as a `PackedFormat`.

Owns: the keys of each format, and which of their values are refused, each by name. SGLang 0.5.23
reads the same keys (srt/layers/quantization: auto_round.py, gptq/gptq.py, awq/awq.py,
compressed_tensors/compressed_tensors.py), by whose rules modules are left out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

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

Raw = Mapping[str, Any]


def read(raw: Raw) -> PackedFormat:
    """The 4-bit format that `quantization_config` describes. FormatError for any other."""
    method = str(raw.get("quant_method", "unknown")).lower()
    if method not in _READERS:
        refuse(f"quant_method {method!r}")
    if raw.get("lm_head"):
        refuse(f"{method} with a quantised lm_head")
    return _READERS[method](raw)


def refuse(what: str) -> NoReturn:
    raise FormatError(f"The checkpoint's weights are {what}, which is not served. {SERVED}")


def _auto_round(raw: Raw) -> PackedFormat:
    _require_bits("auto-round", raw.get("bits"))
    if raw.get("data_type", "int") != "int":
        refuse(f"auto-round with data_type {raw['data_type']!r}")
    packing = _AUTO_ROUND_PACKINGS.get(raw.get("packing_format", "auto_round:auto_gptq"))
    if packing is None:
        refuse(f"auto-round with packing_format {raw['packing_format']!r}")
    blocks = raw.get("block_name_to_quantize") or ()
    blocks = blocks.split(",") if isinstance(blocks, str) else blocks
    return PackedFormat(
        method="auto-round",
        packing=packing,
        group_size=_group_size("auto-round", raw.get("group_size")),
        symmetric=bool(raw.get("sym", True)),
        zero_offset=_ZERO_OFFSETS[packing],
        rules=(
            *_auto_round_rules(raw),
            *(Rule(True, pattern=f"{re.escape(block.strip())}.*") for block in blocks),
        ),
        default=not blocks,
    )


def _auto_round_rules(raw: Raw) -> Iterable[Rule]:
    """`extra_config`: whole names go before patterns."""
    names: dict[bool, list[str]] = {True: [], False: []}
    patterns = []
    for name, own in (raw.get("extra_config") or {}).items():
        quantised = own.get("bits", BITS) < _UNQUANTISED_BITS
        if quantised:
            _require_same("auto-round", f"extra_config[{name!r}]", raw, own)
        if _REGEX & set(name):
            patterns.append(Rule(quantised, pattern=name))
        else:
            names[quantised].append(name)
    return [*(Rule(value, names=frozenset(of)) for value, of in names.items()), *patterns]


def _gptq(raw: Raw) -> PackedFormat:
    _require_bits("gptq", raw.get("bits"))
    if raw.get("desc_act"):
        refuse("gptq with act-order (desc_act), whose fused layers cannot share one order")
    if not raw.get("sym", True):
        refuse("gptq with zero points (sym false), for which SGLang has no kernel")
    version = raw.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        refuse(f"gptq with checkpoint_format {version!r}")
    return PackedFormat(
        method="gptq",
        packing="gptq",
        group_size=_group_size("gptq", raw.get("group_size")),
        symmetric=True,
        zero_offset=int(version == "gptq"),
        rules=(*_gptq_rules(raw), _gptq_named(raw)),
        default=not raw.get("modules_in_block_to_quantize"),
    )


def _gptq_rules(raw: Raw) -> Iterable[Rule]:
    """`dynamic`: "-:REGEX" leaves modules out, "+:REGEX" or "REGEX" gives them values of their
    own. The expression matches from the start of the name."""
    for key, own in (raw.get("dynamic") or {}).items():
        quantised = not key.startswith("-:")
        if quantised:
            _require_same("gptq", f"dynamic[{key!r}]", raw, own or {})
        yield Rule(quantised, pattern=f"(?:{key.removeprefix('-:').removeprefix('+:')}).*")


def _gptq_named(raw: Raw) -> Rule:
    """`modules_in_block_to_quantize`: lists of module names inside a layer."""
    groups = raw.get("modules_in_block_to_quantize") or ()
    lists = [[group] if isinstance(group, str) else group for group in groups]
    return Rule(True, endings=frozenset(name for names in lists for name in names))


def _awq(raw: Raw) -> PackedFormat:
    _require_bits("awq", raw.get("bits"))
    if str(raw.get("version", "gemm")).lower() != "gemm":
        refuse(f"awq of version {raw['version']!r}")
    if not raw.get("zero_point", True):
        refuse("awq without zero points, for which SGLang has no kernel")
    parts = raw.get("modules_to_not_convert") or ()  # matched anywhere in the name
    return PackedFormat(
        method="awq",
        packing="awq",
        group_size=_group_size("awq", raw.get("group_size")),
        symmetric=False,
        rules=tuple(Rule(False, pattern=f".*{re.escape(part)}.*") for part in parts),
    )


def _compressed_tensors(raw: Raw) -> PackedFormat:
    name = "compressed-tensors"
    if raw.get("kv_cache_scheme") is not None:
        refuse(f"{name} with scales for a quantised KV cache (kv_cache_scheme)")
    groups = list((raw.get("config_groups") or {}).values())
    if not groups or any(group.get("weights") != groups[0].get("weights") for group in groups):
        refuse(f"{name} with {len(groups)} config_groups that differ; one is expected")
    weights = groups[0].get("weights") or {}
    _require_w4a16(raw, groups)
    targets = [target for group in groups for target in group.get("targets") or ()]
    return PackedFormat(
        method=name,
        packing="compressed-tensors",
        group_size=_group_size(name, weights.get("group_size")),
        symmetric=bool(weights.get("symmetric", True)),
        rules=(*_named(False, raw.get("ignore") or ()), *_named(True, targets)),
        default="Linear" in targets,
    )


def _require_w4a16(raw: Raw, groups: list[Any]) -> None:
    name, weights = "compressed-tensors", groups[0].get("weights") or {}
    for group in groups:
        form = group.get("format") or raw.get("format")
        if form != "pack-quantized":
            refuse(f"{name} of format {form!r}")
        if group.get("input_activations"):
            refuse(f"{name} with quantised activations (input_activations)")
    _require_bits(name, weights.get("num_bits"))
    if weights.get("type", "int") != "int" or weights.get("strategy", "group") != "group":
        refuse(f"{name} of type {weights.get('type')!r}, strategy {weights.get('strategy')!r}")
    if weights.get("actorder") == "group":
        refuse(f"{name} with act-order (actorder 'group')")


def _named(quantised: bool, targets: Iterable[str]) -> Iterable[Rule]:
    """compressed-tensors: "re:REGEX" from the start of the name, or the end of a dotted name."""
    patterns = [target[3:] for target in targets if target.startswith("re:")]
    yield from (Rule(quantised, pattern=f"(?:{pattern}).*") for pattern in patterns)
    plain = frozenset(target for target in targets if not target.startswith("re:"))
    yield Rule(quantised, endings=plain)


def _require_bits(method: str, bits: Any) -> None:
    if bits != BITS:
        refuse(f"{method} with {bits} bits")


def _group_size(method: str, size: Any) -> int:
    if size not in GROUP_SIZES:
        refuse(f"{method} with groups of {size} (-1: a scale for a whole row)")
    return int(size)


def _require_same(method: str, where: str, raw: Raw, own: Raw) -> None:
    """Modules of their own bits, group size or symmetry would need parameters of their own."""
    for key, default in (("bits", None), ("group_size", None), ("sym", True), ("desc_act", False)):
        usual = raw.get(key, default)
        if own.get(key, usual) != usual:
            refuse(f"{method} with {key} {own[key]} for {where} and {usual} elsewhere")


_READERS: dict[str, Callable[[Raw], PackedFormat]] = {
    "auto-round": _auto_round,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
}
