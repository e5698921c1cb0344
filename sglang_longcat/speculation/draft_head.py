"""The draft's head: a block-FP8 copy of the target's lm_head, and which calls read it.

A draft only proposes and the target decides, so rounding the draft's head changes no output. It
changes how many drafts are accepted (docs/measurements/speculation.md), and halves the 0.8 GB that
each draft reads. Calls that the kernel does not serve read the target's own head, which stays
shared.

Owns: the copy, the choice (LONGCAT_DRAFT_HEAD), and that the copy follows the target's head when
weights are updated. Gathering over ranks, padding and the fp32 buffer are SGLang's
LogitsProcessor's. The draft model (`models/longcat_flash_nextn.py`) says when the head is there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.runtime_context import get_platform
from torch import nn

from longcat_kernels.fp8_layout import quantise_blocks
from longcat_kernels.small_linear import BLOCK, FP8, MOST_TOKENS, is_faster, linear
from longcat_kernels.small_linear.configs import TOKENS
from sglang_longcat import env
from sglang_longcat.layers.operations import is_enabled

_GIB = 1 << 30
_CHUNK = 8 * BLOCK  # rows quantised at a time: 12 MiB of fp32 for 3,072 columns, not 1.5 GiB
_followers: list[weakref.WeakMethod[Callable[[torch.Tensor], None]]] = []


class Fp8Head(nn.Module):
    """The copy. Its memory is taken when the draft model is built: SGLang sizes the KV pool after
    that, and before the head arrives. No part of the checkpoint, so not in the state dict. Columns
    are filled up with zeros to whole blocks (the published model's are whole)."""

    weight: torch.Tensor  # [N, K] float8_e4m3fn
    scales: torch.Tensor  # [ceil(N / 128), K / 128] fp32

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.padding = (0, -columns % BLOCK)
        groups = (columns + self.padding[1]) // BLOCK
        weight = torch.empty(rows, groups * BLOCK, dtype=FP8)
        scales = torch.empty(-(-rows // BLOCK), groups, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def fill(self, head: torch.Tensor) -> None:
        """In place, since CUDA graphs hold the addresses."""
        for first in range(0, len(self.weight), _CHUNK):
            q, scales = quantise_blocks(F.pad(head.detach()[first : first + _CHUNK], self.padding))
            self.weight[first : first + len(q)] = q
            self.scales[first // BLOCK :][: len(scales)] = scales

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits in the dtype of `hidden`, as the target's head gives them."""
        x = F.pad(hidden.bfloat16(), self.padding) if self.padding[1] else hidden.bfloat16()
        return linear(x, self.weight, self.scales).to(hidden.dtype)

    def __str__(self) -> str:
        size = (self.weight.nbytes + self.scales.nbytes) / _GIB
        return (
            f"block-FP8 copy of {len(self.weight):,} rows ({size:.2f} GiB) for up to {MOST_TOKENS} "
            "tokens, the target's for more"
        )


class DraftLogitsProcessor(LogitsProcessor):
    """SGLang's, which multiplies with the FP8 head where `use_fp8_head`."""

    def __init__(self, config: Any, fp8_head: Fp8Head | None, **options: Any) -> None:
        super().__init__(config, **options)
        self.fp8_head = fp8_head

    def _compute_lm_head(
        self,
        hidden_states: torch.Tensor,
        lm_head: Any,
        embedding_bias: torch.Tensor | None = None,
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.fp8_head is not None and use_fp8_head(self.fp8_head, hidden_states):
            return self.fp8_head(hidden_states)
        return super()._compute_lm_head(hidden_states, lm_head, embedding_bias, out=out)


def make_fp8_head(rows: int, columns: int) -> Fp8Head | None:
    """For a head of this shape on this rank; None: draft with the target's. Deterministic inference
    drafts with it too, as our kernel's sums depend on the number of tokens."""
    wish = env.draft_head()
    if wish == "bf16" or not is_enabled("small_linear"):
        return None
    return Fp8Head(rows, columns) if wish == "fp8" or _is_ever_faster(rows, columns) else None


def _is_ever_faster(rows: int, columns: int) -> bool:
    """Whether some number of tokens would read the copy. The table was measured on Hopper."""
    weight = torch.empty(rows, columns, dtype=FP8, device="meta")
    return get_platform().is_sm90 and any(is_faster("linear", weight, n) for n in TOKENS)


def use_fp8_head(head: Fp8Head, hidden: torch.Tensor) -> bool:
    """Whether this call reads the copy: always up to 32 tokens with LONGCAT_DRAFT_HEAD=fp8, else
    where the kernel is faster than cuBLAS with the target's head."""
    tokens = hidden.shape[0]
    if not 0 < tokens <= MOST_TOKENS or torch.compiler.is_compiling():
        return False
    return env.draft_head() == "fp8" or is_faster("linear", head.weight, tokens)


def follow_head(follower: Callable[[torch.Tensor], None]) -> None:
    """Call `follower` (a bound method) with the whole head whenever the target's has been loaded
    again, as long as its object lives."""
    _followers.append(weakref.WeakMethod(follower))


def head_changed(read: Callable[[], torch.Tensor]) -> None:
    """The target says that its head was loaded. `read` gives what the draft would be given; it is
    a collective with --speculative-token-map, and is called on all ranks or none."""
    alive = [follower for follower in _followers if follower() is not None]
    _followers[:] = alive
    if alive:
        head = read()
        for follower in alive:
            if (call := follower()) is not None:
                call(head)
