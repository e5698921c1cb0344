"""Resume only memory that was released.

Why: SGLang removes each tag from a set before it looks whether the tag is there. The KeyError ends
the scheduler, and tags before it are forgotten.
Upstream: managers/scheduler_components/weight_updater.py,
SchedulerWeightUpdaterManager.resume_memory_occupation. `scheduler_errors` answers what is raised.
Remove when: SGLang answers such a call with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_longcat.requests.check import BadRequest

TARGET = (
    "sglang.srt.managers.scheduler_components.weight_updater"
    ".SchedulerWeightUpdaterManager.resume_memory_occupation"
)


def apply(original: Callable[..., Any], updater: Any, request: Any) -> Any:
    from sglang.srt.constants import GPU_MEMORY_ALL_TYPES

    tags = set(request.tags or GPU_MEMORY_ALL_TYPES)
    if missing := tags - updater.offload_tags:
        raise BadRequest(
            f"{sorted(missing)} are not released, so they cannot be resumed; released now: "
            f"{sorted(updater.offload_tags)}."
        )
    return original(updater, request)
