"""SGLang's allocator of zeroed cells, filled only when a layer asks for the first one.

SGLang's MLA takes such cells for its FP8 batched product. bf16 layers ask for none, and filling
them is one launch in each step. Owns when the cells are made, not what they are for.
"""

from __future__ import annotations

import torch
from sglang.srt.utils import BumpAllocator


class LazyZeroAllocator(BumpAllocator):
    """The allocator of one forward: `cells` of fp32, each given out once."""

    def __init__(self, cells: int, device: torch.device) -> None:
        self.cells, self.device = cells, device
        self.made = False

    def allocate(self, size: int) -> torch.Tensor:
        if not self.made:
            super().__init__(self.cells, torch.float32, self.device)
            self.made = True
        return super().allocate(size)
