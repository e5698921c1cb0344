"""Steps of SGLang's resolution of server arguments that the plugin wraps, in its own registry, and
SGLang's variables that such steps set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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


class OwnVariable:
    """One of SGLang's environment variables that a step sets for the schedulers which this process
    starts next. A step releases it first, so that the next engine's settings decide anew."""

    def __init__(self, name: str) -> None:
        """name: of an attribute of `sglang.srt.environ.envs`."""
        self.name, self._is_ours = name, False

    def release(self) -> None:
        """Clears the value of an earlier engine's step. A user's value stays."""
        if self._is_ours:
            self._field.clear()
            self._is_ours = False

    def set_unless_given(self, value: int | bool) -> None:
        """The user's own value wins."""
        if not self._field.is_set():
            self._field.set(value)
            self._is_ours = True

    @property
    def _field(self) -> Any:
        from sglang.srt.environ import envs

        return getattr(envs, self.name)


def is_ours_on_cuda(server_args: ServerArgs) -> bool:
    """Whether our class will serve this model on a GPU. SGLang must have settled the device."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view

    if resolving_view(server_args).device != "cuda":
        return False
    return hf_config.is_served_by_us(model_config_of(server_args).hf_config)
