"""The zeroed cells that SGLang's MLA takes for an FP8 batched product, made when the first is asked
for. bf16 layers ask for none, and filling them is a launch of each step. Owns when, not what for.
"""

from __future__ import annotations

import torch
from sglang.srt.utils import BumpAllocator


class LateZeros(BumpAllocator):
    """SGLang's allocator of a forward: `cells` of fp32, each given out once."""

    def __init__(self, cells: int, device: torch.device) -> None:
        self.cells, self.device = cells, device
        self.made = False

    def allocate(self, size: int) -> torch.Tensor:
        if not self.made:
            super().__init__(self.cells, torch.float32, self.device)
            self.made = True
        return super().allocate(size)
