"""One weight to the packed tensors of AutoRound, by AutoRound, and the error that it leaves.

Owns: the call of the library, and the checks of its result. AutoRound's own command for a model
without a class (`AutoRound(model_free=True)`) calls the same function, but pads layers whose inputs
the group size does not divide, writes zero points in a packing that SGLang 0.5.23 does not read,
and leaves a layer on which it fails in bf16 with a line in the log (auto_round 0.16.1,
compressors/model_free.py and utils/model_free_utils.py).
"""

from __future__ import annotations

import torch

from sglang_longcat.checkpoint import packing
from sglang_longcat.checkpoint.packing import Parts
from sglang_longcat.quantisation.packed import BITS, PackedFormat
from sglang_longcat.quantiser.selection import PACKING, QuantiseError

# Of round-to-nearest in groups of up to 128 at most 0.58: one weight M, and 127 of M / 16, which
# is half a step and rounds to 0. More is a mistake, here or in the library. Gaussian weights: 0.10.
LARGEST_ERROR = 0.6


def require_library() -> None:
    """QuantiseError if AutoRound is not installed. Imports it, which takes seconds."""
    try:
        import auto_round.utils.model_free_utils  # noqa: F401
    except ImportError as error:
        raise QuantiseError(
            f"AutoRound cannot be imported ({error}); it does the rounding. Install it: "
            "pip install 'sglang-longcat[quantize]'"
        ) from error


def quantise(module: str, weight: torch.Tensor, stored: PackedFormat) -> Parts:
    """qweight [i/8, o], qzeros [i/g, o/8] int32 and scales [i/g, o] fp16 of a weight [o, i].

    Symmetric: scale = -x / 8 with x the weight of the largest magnitude in the group, so the scale
    may be negative. Else scale = (max - min) / 15, with 0 between the two. Values are rounded to
    nearest. Raises QuantiseError for a group without negative weights and with zero points: GPTQ's
    first version stores a zero point less one, and 0 has none."""
    from auto_round.utils.model_free_utils import quantize_weight_rtn

    size = stored.group_size
    with torch.no_grad():
        qweight, qzeros, scales = quantize_weight_rtn(
            weight, BITS, size, sym=stored.symmetric, packing=PACKING
        )
    if not stored.symmetric:
        _require_zero_points(module, weight, scales.t(), size)
    return {"qweight": qweight, "qzeros": qzeros, "scales": scales}


def relative_error(module: str, weight: torch.Tensor, parts: Parts, stored: PackedFormat) -> float:
    """|q - w| / |w| (Frobenius), q as a bf16 server reads it: with scales in bf16. QuantiseError if
    it is larger than rounding can make it."""
    packed = packing.standard(parts, stored)
    served = packed._replace(scale=packed.scale.bfloat16())
    exact = weight.float()
    moved = packing.dequantise(served, stored.group_size).sub_(exact).norm()
    error = float(moved / exact.norm().clamp_min(torch.finfo(torch.float32).tiny))
    if not error <= LARGEST_ERROR:  # also for NaN
        raise QuantiseError(
            f"{module} has a relative error of {error:.3g} in 4 bits; rounding leaves at most "
            f"{LARGEST_ERROR}. Check the weight for NaN, infinity and values beyond fp16's range."
        )
    return error


def _require_zero_points(module: str, weight: torch.Tensor, scale: torch.Tensor, size: int) -> None:
    lowest = weight.float().unflatten(1, (-1, size)).amin(-1)
    if bool((2 * lowest > -scale.float()).any()):
        raise QuantiseError(
            f"{module} has a group of {size} weights without a negative one, whose zero point of 0 "
            "the format cannot store. Leave --asymmetric out."
        )
