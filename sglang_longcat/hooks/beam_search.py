"""Answer a beam search request with HTTP 400, and keep serving.

Why: beams change request slots between steps, and the N-gram cache holds the recent tokens of a
slot. A beam's next tokens would be hashed with another beam's predecessors, which gives wrong
answers.
Upstream: beam_search/coordinator.py, BeamCoordinator.validate_and_init, whose message is the
answer.
Remove when: the N-gram cache follows BeamCoordinator's moves between slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.beam_search.coordinator import BeamCoordinator

TARGET = "sglang.srt.beam_search.coordinator.BeamCoordinator.validate_and_init"


def apply(
    original: Callable[..., str | None], coordinator: BeamCoordinator, *args: Any, **kwargs: Any
) -> str | None:
    """The error message for the client; None lets the request pass."""
    from sglang_longcat.host.hf_config import is_served_by_us

    if not is_served_by_us(coordinator.model_config.hf_config):
        return original(coordinator, *args, **kwargs)
    return (
        "LongCat-Flash-Lite is served without beam search; leave beam_width out, "
        "or set n for several samples."
    )
