"""The environment variables without which SGLang's CPU engine does not start.

Owns: their names and values, and the message that asks for them. This file imports neither SGLang
nor torch: SGLang reads most of the variables while it is imported, so they must be set before
Python starts.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

CPU_ENV: dict[str, str] = {
    # is_cpu() in srt/utils/common.py reads this variable and nothing else, once, at import.
    "SGLANG_USE_CPU_ENGINE": "1",
    # Without it, the first TP2 or speculative forward compiles for 8 to 13 s.
    "TORCHDYNAMO_DISABLE": "1",
    # Ranks, tokenizer and detokenizer share the cores; a tiny model gains nothing from threads.
    "OMP_NUM_THREADS": "1",
}
_REQUIRED = "SGLANG_USE_CPU_ENGINE"
_TP_FLAGS = ("--tp", "--tp-size", "--tensor-parallel-size")


def tp_env(tp: int) -> dict[str, str]:
    """The variables that `tp` ranks on one machine need in addition to CPU_ENV; empty for one rank.

    They give each rank a core list, because SGLang otherwise refuses more ranks than NUMA nodes,
    and name a path without NCCL, which would load without a GPU and then ask for a cuda device.
    gloo does the collectives.
    """
    if tp == 1:
        return {}
    cores = "|".join(str(rank) for rank in range(tp))
    return {"SGLANG_CPU_OMP_THREADS_BIND": cores, "SGLANG_NCCL_SO_PATH": "/nonexistent/libnccl.so"}


def require(argv: Sequence[str] | None = None) -> None:
    """Stop a command line with `--device cpu` if its environment lacks what the CPU engine needs.

    Raises SystemExit, which SGLang's plugin loader does not catch, with the command to type
    instead.
    """
    argv = sys.argv if argv is None else argv
    if _flag(argv, "--device") != "cpu":
        return
    per_rank = tp_env(int(_flag(argv, *_TP_FLAGS) or 1))
    missing = [name for name in (_REQUIRED, *per_rank) if not os.environ.get(name)]
    if os.environ.get(_REQUIRED) != "1" and _REQUIRED not in missing:
        missing.insert(0, _REQUIRED)
    if missing:
        settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in {**CPU_ENV, **per_rank}.items())
        raise SystemExit(
            f"sglang-longcat: --device cpu needs {', '.join(missing)} in the environment before "
            f"Python starts, because SGLang reads them while it is imported. Run:\n"
            f"    {settings} {_command(argv)}"
        )


def _flag(argv: Sequence[str], *names: str) -> str | None:
    """The value of the last `--name value` or `--name=value` among the spellings in `names`."""
    value = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, inline = word.partition("=")
        if name in names:
            value = inline if equals else following
    return value


def _command(argv: Sequence[str]) -> str:
    typed = sys.orig_argv if argv is sys.argv else ["python", *argv]
    return shlex.join(typed)
