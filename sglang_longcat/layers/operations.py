"""Which of our optional operations this server may run: the part that no step changes.

Owns: `is_enabled`, which is a part of each operation's decision, and the list for the activation
line. Names are those of LONGCAT_SGLANG_OPS (`env.OPTIONAL_OPS`). In which steps an operation runs
is decided beside it: docs/switches.md names the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.runtime_context import get_platform

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
    """The operations that some step of this server may run, for the activation line."""
    optional = [name for name in env.OPTIONAL_OPS if is_enabled(name) and _fits(name, lite)]
    return [ALWAYS_ON, *optional]


def _fits(operation: str, lite: LongcatConfig) -> bool:
    """Whether the checkpoint, the GPU and the other switches let the operation run."""
    if operation.startswith("fp8_"):
        if operation == "fp8_values" and not (is_enabled("mla_decode") and _attends()):
            return False
        block_fp8 = lite.quant is not None and lite.quant.is_block_fp8
        return block_fp8 and get_platform().is_sm90
    return operation != "mla_decode" or _attends()


def _attends() -> bool:
    """`mla_decode` attends in steps whose prologue is ours, up to so many tokens."""
    tokens = env.split_attention()
    allowed = get_platform().is_sm90 if tokens is None else tokens > 0
    return is_enabled("mla_prologue") and allowed
