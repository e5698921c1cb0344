"""The ways of serving in which `ci.acceptance` compares speculation with plain decoding.

Owns: the engine flags and the environment of each mode. `tests/model/test_speculative.py` tests
aborts, and requests with penalties, stops and grammars.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_longcat.testing.engine_flags import nextn


@dataclass(frozen=True)
class Mode:
    """The `flags` and `env` of an engine. ignore_eos: outputs continue after an EOS."""

    flags: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    ignore_eos: bool = True


_NGRAM = {
    "speculative_algorithm": "NGRAM",
    "speculative_num_draft_tokens": 4,
    "speculative_ngram_max_bfs_breadth": 1,
}
_FP8_HEAD = {"LONGCAT_DRAFT_HEAD": "fp8"}
# A pool that is too small, so that SGLang retracts requests: 8 requests of up to 384 tokens need
# 3072. SGLang admits requests that ignore EOS by their full length, and never retracts them.
_FULL: dict[str, Any] = {"max_total_tokens": 1400, "schedule_conservativeness": 0.01}

MODES: dict[str, Mode] = {
    "mtp": Mode(nextn()),
    "word": Mode(nextn(), env={"LONGCAT_DRAFT_EMBEDDING": "word"}),
    "fp8-head": Mode(nextn(), env=dict(_FP8_HEAD)),
    "steps-1": Mode(nextn(1)),
    "steps-5": Mode(nextn(5)),
    "no-overlap": Mode(nextn(disable_overlap_schedule=True)),
    "chunked-prefill": Mode(nextn(chunked_prefill_size=16)),
    "no-radix-cache": Mode(nextn(disable_radix_cache=True)),
    "pages-of-4": Mode(nextn(page_size=4)),
    "retraction": Mode(nextn(**_FULL), ignore_eos=False),
    "tp2": Mode(nextn(tp_size=2)),
    "tp2-ep2": Mode(nextn(tp_size=2, ep_size=2)),
    "tp2-dp2": Mode(nextn(tp_size=2, attn_dp_size=2)),
    "ngram": Mode(dict(_NGRAM)),
}


def reduced(token_maps: Iterable[Path]) -> dict[str, Mode]:
    """Drafting from the tokens of each file of --speculative-token-map, with either head."""
    modes = {}
    for file in token_maps:
        flags = nextn(speculative_token_map=str(file))
        modes[file.stem] = Mode(flags)
        modes[f"{file.stem}-fp8-head"] = Mode(flags, env=dict(_FP8_HEAD))
    return modes
