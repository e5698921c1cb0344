"""Steps of SGLang's resolution of server arguments that the plugin wraps, in its own registry."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang_longcat.host import hf_config

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

    Step = Callable[[ServerArgs], None]
    Wrapper = Callable[[ServerArgs, Step], None]


@functools.cache
def wrap(step: str, wrapper: Wrapper) -> None:
    """Once per process, since SGLang's registry would keep the same function twice."""
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    register_resolution_hook(step)(wrapper)


def is_ours_on_cuda(server_args: ServerArgs) -> bool:
    """Whether our class will serve this model on a GPU. SGLang must have settled the device."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view

    if resolving_view(server_args).device != "cuda":
        return False
    return hf_config.is_served_by_us(model_config_of(server_args).hf_config)
