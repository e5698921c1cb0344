"""Check the files of a weight update before it overwrites anything.

Why: SGLang streams the new tensors into the live parameters. If one of them is wrong, SGLang's
rollback reads the new path again (the model config no longer has the old one), fails a second time
and ends the scheduler. A tensor that the new files lack silently keeps its old value, and so does
all that the model's reader makes, where a format does not pass through it.
Upstream: model_executor/model_runner_components/weight_updater.py, WeightUpdater.
update_weights_from_disk.
Remove when: SGLang rolls back to the old path and lets a model check a checkpoint before an update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater

TARGET = (
    "sglang.srt.model_executor.model_runner_components.weight_updater"
    ".WeightUpdater.update_weights_from_disk"
)


def apply(
    original: Callable[..., tuple[bool, str]],
    updater: WeightUpdater,
    model_path: str,
    load_format: str,
    *args: Any,
    **kwargs: Any,
) -> tuple[bool, str]:
    """(False, why) for files that do not fit the model being served; else SGLang's own answer."""
    from sglang_longcat.checkpoint.check import CheckpointError
    from sglang_longcat.checkpoint.locate import locate
    from sglang_longcat.config import ConfigError
    from sglang_longcat.ngram.state import NgramStateMixin
    from sglang_longcat.requests.fields import STREAMED

    model = updater.get_model()
    if isinstance(model, NgramStateMixin):
        if load_format not in (*STREAMED, "dummy"):  # SGLang itself refuses dummy here
            return False, f"load_format is {load_format!r}; expected one of {', '.join(STREAMED)}."
        try:
            model.reader.check_update_files(locate(model_path))
        except (CheckpointError, ConfigError, OSError) as error:
            return False, f"{error}\nThe weights loaded before are still served."
    return original(updater, model_path, load_format, *args, **kwargs)
