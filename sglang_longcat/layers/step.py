"""What every layer asks about the step that runs, and about this server's kind of inference.

Owns: these two questions. A function `use_<...>` beside each operation decides in which steps that
operation runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.runtime_context import get_exec

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def is_decode_or_verify(forward_batch: ForwardBatch) -> bool:
    """Whether every request feeds the same number of tokens: one to decode, or the window that
    verifies its drafts. A prefill and a draft's extend step are neither."""
    mode = forward_batch.forward_mode
    return bool(mode.is_decode() or mode.is_target_verify())


def is_deterministic() -> bool:
    """Whether the server runs with --enable-deterministic-inference. It then wants one kernel for
    all batch sizes, and its own norms."""
    return bool(get_exec().deterministic.enable_deterministic_inference)
