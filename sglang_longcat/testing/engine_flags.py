"""Engine arguments that tests, benchmarks and gates share."""

from __future__ import annotations

from typing import Any


def nextn(steps: int = 3, **flags: Any) -> dict[str, Any]:
    """Speculative decoding with the MTP layer: one chain of `steps` drafts; `flags` are added."""
    return {
        "speculative_algorithm": "NEXTN",
        "speculative_num_steps": steps,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": steps + 1,
        **flags,
    }
