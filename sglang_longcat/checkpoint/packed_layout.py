"""Names, shapes and dtypes of the tensors that stand for a weight [o, i] in 4 bits.

    gptq                qweight [i/8, o]       qzeros [i/g, o/8]             scales [i/g, o]
    awq                 qweight [i, o/8]       qzeros [i/g, o/8]             scales [i/g, o]
    compressed-tensors  weight_packed [o, i/8] weight_zero_point [o/8, i/g]  weight_scale [o, i/g]

g is the group size. GPTQ files may have g_idx [i], compressed-tensors has weight_shape [2], and
weight_zero_point only where the format is not symmetric. Which bits of a word hold which value is
in `packing`. Knows neither torch nor files.
"""

from __future__ import annotations

from dataclasses import replace

from sglang_longcat.quantisation.packed import PER_WORD, FormatError, PackedFormat

DEQUANTISED = ".kv_b_proj"  # is absorbed into MLA's queries and outputs
Shapes = dict[str, tuple[int, ...]]

# I32 holds eight values. A scale may have any float type: the loader casts it.
_DTYPES = {
    "qweight": "I32",
    "qzeros": "I32",
    "scales": "F16",
    "g_idx": "I32",
    "weight_packed": "I32",
    "weight_zero_point": "I32",
    "weight_scale": "BF16",
    "weight_shape": "I64",
}
# The last parts of names, by what the tensors hold.
VALUES = ("qweight", "weight_packed")
SCALES = ("scales", "weight_scale")
ZEROS = ("qzeros", "weight_zero_point")
# Some writers leave it out, since it is i // g without act-order.
OPTIONAL = ("g_idx",)


def tensors(module: str, shape: tuple[int, ...], stored: PackedFormat) -> Shapes:
    """Of the linear layer `module` with a weight of this shape, without the optional ones."""
    outputs, inputs = shape
    size = stored.group_size
    if inputs % size or outputs % PER_WORD:
        raise FormatError(
            f"{module} has {inputs} inputs and {outputs} outputs: expected multiples of the group "
            f"size {size} and of {PER_WORD}. Leave it unquantised, or use smaller groups."
        )
    groups = inputs // size
    if stored.packing == "compressed-tensors":
        parts: Shapes = {
            "weight_packed": (outputs, inputs // PER_WORD),
            "weight_scale": (outputs, groups),
            "weight_shape": (2,),
        }
        if not stored.symmetric:
            parts["weight_zero_point"] = (outputs // PER_WORD, groups)
    else:
        by_inputs = stored.packing == "gptq"
        parts = {
            "qweight": (inputs // PER_WORD, outputs)
            if by_inputs
            else (inputs, outputs // PER_WORD),
            "qzeros": (groups, outputs // PER_WORD),
            "scales": (groups, outputs),
        }
    return {f"{module}.{part}": part_shape for part, part_shape in parts.items()}


def served_tensors(module: str, shape: tuple[int, ...], stored: PackedFormat) -> Shapes:
    """What `packed_reader` makes of them, and so what a server holds: kv_b_proj dequantised, other
    layers in compressed-tensors' order."""
    if module.endswith(DEQUANTISED):
        return {f"{module}.weight": shape}
    served = replace(stored, packing="compressed-tensors")
    held = tensors(module, shape, served)
    del held[f"{module}.weight_shape"]
    return held


def optional_tensors(module: str, shape: tuple[int, ...], stored: PackedFormat) -> Shapes:
    return {f"{module}.g_idx": (shape[1],)} if stored.packing == "gptq" else {}


def dtype_of(name: str) -> str | None:
    """The safetensors dtype, or None for a tensor that is no part of a packed weight."""
    return _DTYPES.get(name.rpartition(".")[2])
