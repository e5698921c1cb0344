"""Refuse `--use-ray`, with which SGLang's own model class would serve without any message.

SGLang's Ray actors build the scheduler themselves and load no plugins (0.5.23: load_plugins is in
run_scheduler_process, which they do not call), so neither our class nor its checks exist there. But
the process that resolves the flags loads plugins. There a step in SGLang's registry of resolution
steps refuses the flag, for this model only. Remove when ray/scheduler_actor.py loads plugins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang_longcat.host import hf_config

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

STEP = "handle_model_specific_adjustments"


def refuse(server_args: ServerArgs, previous: Callable[[ServerArgs], None]) -> None:
    """Runs SGLang's step. Raises ValueError if Ray would serve LongCat-Flash-Lite."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view

    if resolving_view(server_args).use_ray and hf_config.is_served_by_us(
        model_config_of(server_args).hf_config
    ):
        raise ValueError(
            "sglang-longcat: --use-ray starts schedulers that load no plugins, so SGLang's own "
            "LongCat class would answer, wrongly. Start one server per node instead (--nnodes), on "
            "a Ray cluster with launch/ray/serve.py."
        )
    previous(server_args)


@functools.cache
def register() -> None:
    """Once per process, since SGLang's registry would keep the same function twice."""
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    register_resolution_hook(STEP)(refuse)
