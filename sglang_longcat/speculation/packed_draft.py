"""Loads the 4-bit layers of the draft model.

Why not SGLang's loader: it knows the draft's tensors by a list of names (`weight` and
`weight_scale_inv`), and skips all others without a word (0.5.23, models/longcat_flash_nextn.py,
weight_names_mapping). Remove when that loader takes any parameter of its layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from sglang_longcat.checkpoint.layout import MTP_PREFIX

_LAYER = f"{MTP_PREFIX}layers.0."
_PARTS = ("weight_packed", "weight_scale", "weight_zero_point")
_PATHS = {
    "eh_proj": "model.eh_proj",
    "self_attn": "model.decoder.self_attn",
    "transformer_layer.mlp": "model.decoder.mlp",
}
_SHARDS = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}
_LATENTS = ("q_a_proj", "kv_a_proj_with_mqa")  # one layer, in this order
_LATENT_LAYER = "fused_qkv_a_proj_with_mqa"


class PackedDraft:
    """`load` takes these layers' tensors out of what the draft's reader yields."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.latents: dict[str, dict[str, torch.Tensor]] = {}

    def load(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            module, _, part = name.rpartition(".")
            if part in _PARTS:
                self._load(module.removeprefix(_LAYER), part, tensor)
            else:
                yield name, tensor

    def _load(self, module: str, part: str, tensor: torch.Tensor) -> None:
        parent, _, name = module.rpartition(".")
        path = _PATHS[parent or name]
        if name in _LATENTS:
            self._load_latent(f"{path}.{_LATENT_LAYER}", name, part, tensor)
        elif name in _SHARDS:
            layer, shard = _SHARDS[name]
            self._fill(f"{path}.{layer}.{part}", tensor, shard)
        else:
            layer = path if not parent else f"{path}.{name}"
            self._fill(f"{layer}.{part}", tensor)

    def _load_latent(self, layer: str, name: str, part: str, tensor: torch.Tensor) -> None:
        """Outputs are the first dimension of every part."""
        found = self.latents.setdefault(part, {})
        found[name] = tensor
        if len(found) == len(_LATENTS):
            self._fill(f"{layer}.{part}", torch.cat([found[of] for of in _LATENTS]))
            del self.latents[part]

    def _fill(self, name: str, tensor: torch.Tensor, *shard: int) -> None:
        parameter: Any = self.model.get_parameter(name)
        parameter.weight_loader(parameter, tensor, *shard)
