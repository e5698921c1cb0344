"""Which of our operations this server may run: the part that no step changes.

Owns: `is_enabled`, which every predicate `use_<operation>` asks first, and the list for the
activation line. Names are those of LONGCAT_SGLANG_OPS (`env.OPTIONAL_OPS`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang_longcat import env
from sglang_longcat.layers.step import is_deterministic

if TYPE_CHECKING:
    from sglang_longcat.config import LongcatConfig

ALWAYS_ON = "ngram"  # the in-tree look-up that it replaces gives wrong answers
# The router has two kernels and small_linear one for each number of tokens; the others are norms,
# or need a norm's result. expert_finalize adds up in one order for every batch.
_BATCH_DEPENDENT = frozenset(env.OPTIONAL_OPS) - {"expert_finalize"}


def is_enabled(operation: str) -> bool:
    """True unless LONGCAT_SGLANG_OPS names it or deterministic inference excludes it."""
    return env.use_ours(operation) and not (operation in _BATCH_DEPENDENT and is_deterministic())


def enabled_operations(lite: LongcatConfig) -> list[str]:
    """The names for the activation line. Per step, each operation's own predicate decides."""
    return [
        ALWAYS_ON,
        *(name for name in env.OPTIONAL_OPS if is_enabled(name) and _fits(name, lite)),
    ]


def _fits(operation: str, lite: LongcatConfig) -> bool:
    """Whether the checkpoint and the other switches leave the operation something to do."""
    if operation.startswith("fp8_"):
        return lite.quant is not None and lite.quant.is_block_fp8
    if operation == "mla_decode":  # attends in steps whose prologue is ours, up to so many tokens
        return is_enabled("mla_prologue") and env.split_attention() != 0
    return True
