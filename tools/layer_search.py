"""The search for a layer's tiles: one axis after the other, and once more. For tools/tune_layer.py.

Tiles of kernels that share the GPU depend on each other, and all their combinations are too many.
Times of a layer vary by some tenths of a percent, so a choice changes only for more than that, and
only if it is as much faster when both are measured again. Owns order and choice; `measure` comes
from the caller, so that the search itself needs no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from triton.errors import TritonError

from layer_space import Axis, Choice, Choices, text

SWEEPS = 2
WORTH = 0.997  # of the time so far, at most
LAYER = "layer"  # the axis of whole layers, shipped and tuned
_SHOWN = 6

Measure = Callable[[Choices, bool], float]  # microseconds a layer; True: carefully


class Measured(NamedTuple):
    sweep: int
    axis: str
    choice: Choice
    us: float


@dataclass
class Search:
    """measured: everything, in order. chosen: the best so far; us: its time."""

    start: Choices
    axes: Sequence[Axis]
    measure: Measure
    in_time: Callable[[], bool]

    def __post_init__(self) -> None:
        self.measured: list[Measured] = []
        self.chosen, self.us = dict(self.start), math.inf

    def run(self) -> Choices:
        self.us = self._time(self.start, careful=True)
        for sweep in range(1, SWEEPS + 1):
            for axis in self.axes:
                self._along(axis, sweep)
        return self._finish()

    def _along(self, axis: Axis, sweep: int) -> None:
        now = self.chosen[axis.name]
        times = {now: self.us}
        for choice in axis.choices:
            if choice != now and self.in_time():
                times[choice] = self._time({**self.chosen, axis.name: choice})
        best = sorted(times, key=lambda choice: times[choice])
        self.measured += [Measured(sweep, axis.name, choice, times[choice]) for choice in best]
        shown = ", ".join(f"{text(choice)}: {times[choice]:.1f}" for choice in best[:_SHOWN])
        print(f"  {axis.name}: {shown}", flush=True)
        if axis.taken and times[best[0]] < WORTH * self.us:
            self._take({**self.chosen, axis.name: best[0]})

    def _take(self, choices: Choices) -> None:
        """If both measured again say so as well."""
        us, self.us = (self._time(one, careful=True) for one in (choices, self.chosen))
        if us < WORTH * self.us:
            self.chosen, self.us = choices, us

    def _finish(self) -> Choices:
        """The whole against what is shipped, which stays if it is as fast."""
        found = {"shipped": self.start, "tuned": self.chosen}
        times = {name: self._time(choices, careful=True) for name, choices in found.items()}
        self.measured += [Measured(SWEEPS, LAYER, name, us) for name, us in times.items()]
        better = times["tuned"] < WORTH * times["shipped"]
        return self.chosen if better else dict(self.start)

    def _time(self, choices: Choices, *, careful: bool = False) -> float:
        """inf for what cannot be launched."""
        try:
            return self.measure(choices, careful)
        except (TritonError, RuntimeError) as error:
            print(f"  {_differences(choices, self.chosen)}: {str(error).splitlines()[:1]}")
            return math.inf


def _differences(choices: Choices, others: Choices) -> str:
    return ", ".join(f"{k} {text(v)}" for k, v in choices.items() if v != others[k]) or "as before"
