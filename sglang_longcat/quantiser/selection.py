"""Which layers are quantised, which stay as they are and why, and what config.json says of it.

Owns: `Options`, the rule that parts of one layer stay together, and the keys of AutoRound's
`quantization_config`, as `quantisation.formats` reads them. Knows neither torch nor files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_longcat.checkpoint.layout import (
    MTP_PREFIX,
    as_stored,
    expected_tensors,
    in_one_layer,
    is_linear,
)
from sglang_longcat.checkpoint.packed_layout import DEQUANTISED, Shapes
from sglang_longcat.config import LongcatConfig, QuantConfig
from sglang_longcat.quantisation import formats
from sglang_longcat.quantisation.packed import BITS, PER_WORD, PackedFormat

PACKING = "auto_round:auto_gptq"  # SGLang reads this one with zero points too
_ROUTER = ".mlp.router.classifier.weight"


class QuantiseError(ValueError):
    """The checkpoint cannot be quantised as asked."""


@dataclass(frozen=True)
class Options:
    """What the user chooses."""

    group_size: int = 128
    symmetric: bool = True
    mtp: bool = False  # the MTP layer too
    kv_b: bool = False  # kv_b_proj too; a server holds it in bf16 either way


@dataclass(frozen=True)
class Selection:
    """The linear layers of a checkpoint, by their names without ".weight"."""

    quantised: frozenset[str]
    kept: Mapping[str, str]  # to the reason
    config: dict[str, Any]  # quantization_config
    shapes: Shapes  # of all tensors of the result

    @property
    def stored(self) -> PackedFormat:
        return formats.read(self.config)


def select(config: LongcatConfig, options: Options, *, mtp: bool) -> Selection:
    """`config` is of the unquantised checkpoint, which has an MTP layer if `mtp`. QuantiseError if
    no layer can be quantised."""
    shapes = expected_tensors(config, mtp=mtp)
    linear = {n.removesuffix(".weight"): shape for n, shape in shapes.items() if is_linear(n)}
    kept = _joined(linear, {m: _reason(m, shape, options) for m, shape in linear.items()})
    quantised = frozenset(linear.keys() - kept.keys())
    if not quantised:
        raise QuantiseError(
            f"No layer can be quantised in groups of {options.group_size}: {next(iter(kept))} has "
            f"{next(iter(kept.values()))}. Give a smaller --group-size."
        )
    raw = _config([n for n in shapes if n.endswith(_ROUTER)], kept, options)
    packed = formats.read(raw)
    ignored = () if options.mtp else (MTP_PREFIX.removesuffix("."),)
    quant = QuantConfig(method=packed.method, block=None, ignored=ignored, packed=packed)
    return Selection(quantised, kept, raw, as_stored(shapes, quant))


def _reason(module: str, shape: tuple[int, ...], options: Options) -> str:
    """Why the layer stays as it is; empty if it does not."""
    outputs, inputs = shape
    if module.startswith(MTP_PREFIX) and not options.mtp:
        return "the MTP layer (--mtp)"
    if module.endswith(DEQUANTISED) and not options.kv_b and not module.startswith(MTP_PREFIX):
        return "held in bf16 by a server (--kv-b-proj)"
    if inputs % options.group_size:
        return f"{inputs} inputs, no multiple of {options.group_size}"
    return f"{outputs} outputs, no multiple of {PER_WORD}" if outputs % PER_WORD else ""


def _joined(linear: Shapes, reasons: dict[str, str]) -> dict[str, str]:
    """The layers that stay: those with a reason, and those that a server joins with one. The MTP
    layer is in one format as a whole (`layout.with_draft_as_stored`)."""
    layers: dict[str, list[str]] = defaultdict(list)
    for module in linear:
        draft = module.startswith(MTP_PREFIX)
        layers[MTP_PREFIX if draft else in_one_layer(module)].append(module)
    kept: dict[str, str] = {}
    for modules in layers.values():
        if first := next((module for module in modules if reasons[module]), None):
            joined = f"one layer with {first.rpartition('.')[2]}: {reasons[first]}"
            kept |= {module: reasons[module] or joined for module in modules}
    return kept


def _config(routers: list[str], kept: Mapping[str, str], options: Options) -> dict[str, Any]:
    """As AutoRound writes it. Readers other than ours take every linear layer of a block for
    quantised, so the routers are named too."""
    blocks = ["model.layers", *(["model.mtp.layers"] if options.mtp else [])]
    names = [*kept, *(name.removesuffix(".weight") for name in routers)]
    inside = [name for name in names if name.startswith(tuple(f"{block}." for block in blocks))]
    return {
        "quant_method": "auto-round",
        "packing_format": PACKING,
        "bits": BITS,
        "group_size": options.group_size,
        "sym": options.symmetric,
        "data_type": "int",
        "iters": 0,
        "block_name_to_quantize": ",".join(blocks),
        "extra_config": {name: {"bits": 16, "data_type": "fp"} for name in sorted(inside)},
    }
