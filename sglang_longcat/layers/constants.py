"""Tensors of a layer that no checkpoint has and nothing changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def register_constant(module: nn.Module, name: str, constant: torch.Tensor) -> None:
    """Makes `module.name` a buffer, because SGLang keeps these, and nothing else, when the memory
    of weights is released: without it the layer would go on with what then lies there. SGLang's
    /weights_checker passes it over, since no weight update would bring it back."""
    marked: Any = constant
    marked._skip_weight_check = True
    module.register_buffer(name, constant, persistent=False)
