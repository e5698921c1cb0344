"""Refuse to release memory that is in use or already released.

Why: SGLang asserts that no request runs, which ends the scheduler for those that do. Released
twice, weights are saved from memory that is gone. A release that fails counts as done, and without
a memory saver it frees nothing, and only the log says so.
Upstream: managers/scheduler_components/weight_updater.py,
SchedulerWeightUpdaterManager.release_memory_occupation. `scheduler_errors` answers what is raised.
Remove when: SGLang answers such a release with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_longcat.requests.check import BadRequest

TARGET = (
    "sglang.srt.managers.scheduler_components.weight_updater"
    ".SchedulerWeightUpdaterManager.release_memory_occupation"
)
BUSY = "Requests are running in the memory that would be released"


def apply(original: Callable[..., Any], updater: Any, request: Any) -> Any:
    from sglang.srt.constants import GPU_MEMORY_ALL_TYPES

    tags = set(request.tags or GPU_MEMORY_ALL_TYPES)
    if tags - set(GPU_MEMORY_ALL_TYPES):
        raise BadRequest(f"tags are {sorted(tags)}; expected some of {GPU_MEMORY_ALL_TYPES}.")
    if again := tags & updater.offload_tags:
        raise BadRequest(f"{sorted(again)} are already released; resume them first.")
    if not updater.is_fully_idle(ignore_waiting=updater.scheduler._engine_paused):
        raise BadRequest(
            f"{BUSY}; wait until they have ended, or end them with POST /abort_request or "
            "/pause_generation."
        )
    if not updater.memory_saver_adapter.enabled:
        raise BadRequest(
            "The server was started without --enable-memory-saver, so nothing would be released. "
            "Start it with this flag, on a GPU."
        )
    released = set(updater.offload_tags)
    try:
        return original(updater, request)
    except Exception:
        # SGLang notes the tags first. The set is shared with the scheduler's parts.
        updater.offload_tags &= released
        raise
