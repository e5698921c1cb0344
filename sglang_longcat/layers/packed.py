"""4-bit layers on SGLang's W4A16 methods (Marlin on a GPU).

Every 4-bit checkpoint is served with the parameters of compressed-tensors, into whose order the
reader brings it (`checkpoint/packed_reader.py`). So `PackedConfig` takes the place of the config
that SGLang chose by the checkpoint's `quant_method`. Why not that one, on a GPU with 0.5.23: GPTQ's
and AutoRound's experts have fp16 scales, with which Marlin refuses bf16 activations
(gptq/schemes/gptq_moe.py, fused_marlin_moe.py); with tensor parallelism their scales of `down` have
the size of all ranks; and the two latent projections would be joined along their inputs
(models/longcat_flash.py, load_weights). Owns: which layer gets which method. Methods, sharding and
kernels are SGLang's, but for a few dense tokens (`packed_linear`); `cpu/packed.py` has the methods
of a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from compressed_tensors.quantization import QuantizationArgs
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
    CompressedTensorsFusedMoEMethod,
    CompressedTensorsLinearMethod,
)
from sglang.srt.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsWNA16,
    CompressedTensorsWNA16MoE,
)
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

from sglang_longcat.checkpoint.layout import fused_parts
from sglang_longcat.checkpoint.packed_layout import DEQUANTISED
from sglang_longcat.quantisation.packed import BITS

if TYPE_CHECKING:
    from sglang.srt.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

    from sglang_longcat.checkpoint.reader import TensorReader
    from sglang_longcat.config import LongcatConfig, QuantConfig

_FORMAT = "pack-quantized"


def serving_config(
    lite: LongcatConfig, chosen: QuantizationConfig | None
) -> QuantizationConfig | None:
    """What the layers are built with: `chosen` by SGLang, or a PackedConfig for 4 bits."""
    if lite.quant is None or lite.quant.packed is None:
        return chosen
    return PackedConfig(lite.quant)


def prepare_reader(reader: TensorReader, device: torch.device) -> None:
    """Before the first load: reorder on the model's device, and refuse updates of weights that
    Marlin repacks."""
    repacked = PackedConfig.linear_method is CompressedTensorsLinearMethod
    reader.convert_on(device, takes_updates=not repacked)


class PackedConfig(CompressedTensorsConfig):
    """`QuantConfig` says which layers are quantised, so SGLang's own rules have nothing to say."""

    linear_method: ClassVar[type[CompressedTensorsLinearMethod]] = CompressedTensorsLinearMethod
    experts_method: ClassVar[type[CompressedTensorsFusedMoEMethod]] = (
        CompressedTensorsFusedMoEMethod
    )

    def __init__(self, quant: QuantConfig) -> None:
        super().__init__(
            target_scheme_map={},
            ignore=[],
            quant_format=_FORMAT,
            sparsity_scheme_map={},
            sparsity_ignore_list=[],
        )
        assert quant.packed is not None
        self.quant = quant
        self.group_size, self.symmetric = quant.packed.group_size, quant.packed.symmetric

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """None: SGLang's choice for an unquantised layer."""
        if isinstance(layer, LinearBase):
            if not self._quantises(prefix):
                return UnquantizedLinearMethod()
            layer.scheme = self._linear_scheme()
            return self.linear_method(self)
        if isinstance(layer, FusedMoE) and self._quantises(prefix):
            layer.scheme = self._experts_scheme()
            return self.experts_method(self)
        return None

    def _quantises(self, prefix: str) -> bool:
        """kv_b_proj arrives dequantised."""
        parts = fused_parts(prefix)
        return not prefix.endswith(DEQUANTISED) and not self.quant.ignores(parts[0])

    def _linear_scheme(self) -> CompressedTensorsWNA16:
        return CompressedTensorsWNA16(
            strategy="group",
            num_bits=BITS,
            group_size=self.group_size,
            symmetric=self.symmetric,
        )

    def _experts_scheme(self) -> Any:
        """Marlin on every GPU. SGLang would take Triton on SM100, of which nobody has seen that it
        skips identity slots."""
        weights = QuantizationArgs(
            num_bits=BITS,
            strategy="group",
            group_size=self.group_size,
            symmetric=self.symmetric,
        )
        return CompressedTensorsWNA16MoE(self, weight_quant=weights)
