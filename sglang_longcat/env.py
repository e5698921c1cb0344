"""Every LONGCAT_* environment variable, typed, in one place.

Owns: names, defaults and the errors about wrong values. A variable is read at each call and never
cached. `docs/switches.md` describes what each one changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, cast

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


@contextmanager
def defaults(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, these variables are set where the environment does not set them, as a recipe's
    switches are. For plans; a server gets its environment when it starts."""
    added = values.keys() - os.environ.keys()
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _flag(name: str, *, default: bool = False) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise ValueError(f"{name}={value!r}: expected 1 or 0. Unset it or set it to 1.")
    return value in _TRUE if value else default


def disabled() -> bool:
    """LONGCAT_DISABLE=1: register nothing, so that SGLang's in-tree model runs (for A/B)."""
    return _flag("LONGCAT_DISABLE")


def try_sglang() -> str:
    """LONGCAT_TRY_SGLANG=VERSION: accept this version of SGLang beside the supported one, if every
    attribute that we use is there. For trying an upgrade; it is not tested."""
    return os.environ.get("LONGCAT_TRY_SGLANG", "").strip()


def dummy_routing() -> bool:
    """LONGCAT_DUMMY_ROUTING=1: spread the routing of `--load-format dummy` weights, for
    benchmarks."""
    return _flag("LONGCAT_DUMMY_ROUTING")


def gpu_memory_mib() -> int | None:
    """LONGCAT_GPU_MEMORY_MIB=N: GPUs look as if they had N MiB, for measurements of what fits on
    smaller ones. None if it is not set."""
    name = "LONGCAT_GPU_MEMORY_MIB"
    value = os.environ.get(name, "").strip()
    if value and not (value.isdecimal() and int(value)):
        raise ValueError(f"{name}={value!r}: expected the memory of a GPU in MiB, say 24564.")
    return int(value) if value else None


def _choice(name: str, *choices: str) -> str:
    """The value, one of `choices`; the first of them if the variable is not set."""
    value = os.environ.get(name, "").strip().lower() or choices[0]
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}.")
    return value


def ngram_tables() -> str:
    """LONGCAT_NGRAM_TABLES=auto|device|host: where the n-gram tables live."""
    return _choice("LONGCAT_NGRAM_TABLES", "auto", "device", "host")


def ngram_table_dtype() -> Literal["bf16", "fp8", "int4"]:
    """LONGCAT_NGRAM_TABLE_DTYPE=bf16|fp8|int4: fp8 rows take half of the memory, int4 rows with a
    scale for every 32 values a little more than a quarter. Both are less precise."""
    value = _choice("LONGCAT_NGRAM_TABLE_DTYPE", "bf16", "fp8", "int4")
    return cast(Literal["bf16", "fp8", "int4"], value)


def draft_embedding() -> str:
    """LONGCAT_DRAFT_EMBEDDING=mtp|word: the table in which the draft model looks tokens up. mtp is
    the MTP layer's own (the default); word is the target's, which saves the memory of the
    former."""
    return _choice("LONGCAT_DRAFT_EMBEDDING", "mtp", "word")


def draft_head() -> str:
    """LONGCAT_DRAFT_HEAD=auto|fp8|bf16: the head that drafts are chosen with. fp8 is a block-FP8
    copy of the target's for steps of at most 32 tokens, bf16 the target's own. auto: the copy on
    Hopper, for numbers of tokens at which our kernel is faster."""
    return _choice("LONGCAT_DRAFT_HEAD", "auto", "fp8", "bf16")


def prefill_graph() -> bool:
    """LONGCAT_PREFILL_GRAPH=1: let SGLang replay short prefills as CUDA graphs. Its in-tree model
    cannot."""
    return _flag("LONGCAT_PREFILL_GRAPH")


def pdl() -> bool:
    """LONGCAT_PDL=1|0: whether our kernels start before the previous kernel ends (programmatic
    dependent launch). SGLang's and flashinfer's kernels do so in either case."""
    return _choice("LONGCAT_PDL", "1", "0") == "1"


def two_streams() -> int:
    """LONGCAT_TWO_STREAMS=N: captured steps of at most N tokens (default 256) run the expert
    mixture and the dense branch at the same time, on streams of their own; 0: never."""
    return _count("LONGCAT_TWO_STREAMS", default=256)


def _count(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdecimal():
        raise ValueError(f"{name}={value!r}: expected a number of tokens, or 0 for never.")
    return int(value)


def small_experts() -> bool:
    """LONGCAT_SMALL_EXPERTS=1: steps of one to three tokens compute their experts with our kernels.
    Off by default, because no whole engine has been timed with them yet."""
    return _flag("LONGCAT_SMALL_EXPERTS")


def parallel_compile() -> bool:
    """LONGCAT_PARALLEL_COMPILE=1|0: whether DeepGEMM's kernels, ours and CUDA modules of SGLang and
    flashinfer are compiled in parallel while weights load, on Hopper. On by default: a cold start
    in block FP8 with drafts was ready after 63 s, where one without it was not after 290, and a
    warm one waited 2 s for it."""
    return _flag("LONGCAT_PARALLEL_COMPILE", default=True)


# Optional operations: LONGCAT_SGLANG_OPS switches each back to what SGLang launches.
OPTIONAL_OPS = (
    "expert_finalize",
    "finalize_norm",
    "fp8_norm",
    "fp8_query",
    "fp8_swiglu",
    "fp8_values",
    "mla_decode",
    "mla_prologue",
    "moe_router",
    "small_linear",
)


def split_attention() -> int | None:
    """LONGCAT_SPLIT_ATTENTION=auto|N: decode and verify steps of at most N tokens attend with our
    split kernel; 0: none. Returns None for auto, the default: steps on Hopper for which
    `longcat_kernels.mla_decode.is_faster`."""
    name = "LONGCAT_SPLIT_ATTENTION"
    value = os.environ.get(name, "").strip().lower() or "auto"
    if value != "auto" and not value.isdecimal():
        raise ValueError(f"{name}={value!r}: expected auto, a number of tokens, or 0 for never.")
    return None if value == "auto" else int(value)


def use_ours(op: str) -> bool:
    """False if LONGCAT_SGLANG_OPS is "all" or names `op`: SGLang's kernel then runs instead of ours
    (to find out which kernel is wrong, or how much time it saves)."""
    value = os.environ.get("LONGCAT_SGLANG_OPS", "").strip().lower()
    names = {name.strip() for name in value.split(",")} - {""}
    if unknown := names - {"all", *OPTIONAL_OPS}:
        raise ValueError(
            f"LONGCAT_SGLANG_OPS={value!r}: {', '.join(sorted(unknown))} unknown, expected all or "
            f"some of {', '.join(OPTIONAL_OPS)}, separated by commas."
        )
    return not names & {"all", op}
