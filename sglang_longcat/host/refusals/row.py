"""The form of a refused flag, and the shapes that most of them have."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

LEAVE_OUT = "leave it out"


class Refusal(NamedTuple):
    """A row of the tables in this folder. The message is "flag: reason; remedy"."""

    flag: str  # as the user typed it; {args.NAME} stands for its value
    is_refused: Callable[[Any], bool]  # given SGLang's ServerArgs
    reason: str
    remedy: str

    def message(self, args: Any) -> str:
        return f"{self.flag.format(args=args)}: {self.reason}; {self.remedy}"


def switch(flag: str, reason: str, remedy: str = LEAVE_OUT) -> Refusal:
    """Refuses a flag that is set: a switch, a path, a number above 0."""
    name = field(flag)
    return Refusal(flag, lambda args: bool(getattr(args, name)), reason, remedy)


def only(flag: str, accepted: Collection[Any], reason: str, remedy: str = LEAVE_OUT) -> Refusal:
    """Refuses every value that is not among `accepted`."""
    name = field(flag)
    typed = f"{flag} {{args.{name}}}"
    return Refusal(typed, lambda args: getattr(args, name) not in accepted, reason, remedy)


def above(flag: str, most: int, reason: str, remedy: str) -> Refusal:
    """Refuses numbers above `most`."""
    name = field(flag)
    return Refusal(
        f"{flag} {{args.{name}}}", lambda args: getattr(args, name) > most, reason, remedy
    )


def on_cpu(args: Any) -> bool:
    return bool(args.device == "cpu")


def on_gpu(args: Any) -> bool:
    """Without --device SGLang takes the GPU, if there is one."""
    from sglang.srt.utils import is_cpu

    return not on_cpu(args) and (args.device is not None or not is_cpu())


def on_gpu_only(flag: str) -> Refusal:
    """Refuses a switch on the CPU, where SGLang accepts it and its kernels fail."""
    name = field(flag)
    return Refusal(
        flag, lambda args: bool(getattr(args, name)) and on_cpu(args), "needs a GPU", LEAVE_OUT
    )


def field(flag: str) -> str:
    """The name of the flag in SGLang's ServerArgs."""
    return flag.removeprefix("--").replace("-", "_")
