"""The search over tiles of the expert GEMM, and the choice among what was measured.

Owns rounds, finalists and the choice. `compile_all` and `measure` come from the caller, so that the
search itself needs no GPU. Both GEMMs read one sorted list of rows, so their tiles have the same
number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.tune.experts.space import Variant, anchors_of, space

FINALISTS = 5  # of each kind, for the numbers of tokens around an anchor
# What TMA and sorted rows have to gain: sorted rows take more memory in a prefill.
_TMA_MARGIN, _SORTED_MARGIN = 1.01, 1.03

Job = tuple[int, Variant]  # tokens, what to launch
Pair = tuple[Variant, Variant]  # both GEMMs
# Microseconds and variant, by GEMM, loads by TMA, and rows of the tile.
Groups = dict[tuple[str, bool, int], list[tuple[float, Variant]]]
Measure = Callable[[int, Variant], float]  # microseconds, inf for what cannot run


@dataclass
class Search:
    """times: microseconds of each job. SGLang's own choice is measured first, for comparison."""

    tokens: Sequence[int]
    defaults: dict[int, Pair]
    compile_all: Callable[[Sequence[Job]], set[Job]]
    measure: Measure
    in_time: Callable[[], bool]
    fp8: bool = False
    tma: bool = True

    def __post_init__(self) -> None:
        self.times: dict[Job, float] = {}

    def run(self) -> dict[Job, float]:
        anchors = sorted({anchor for tokens in self.tokens for anchor in anchors_of(tokens)})
        known = [(tokens, variant) for tokens in self.tokens for variant in self.defaults[tokens]]
        spaces = [(a, space(a, fp8=self.fp8, tma=self.tma)) for a in anchors]
        self._round([*known, *_in_turns(spaces)])
        self._round([job for tokens in self.tokens for job in self._finals(tokens)])
        return self.times

    def _round(self, jobs: Iterable[Job]) -> None:
        todo = [job for job in dict.fromkeys(jobs) if job not in self.times]
        ready = self.compile_all(todo)
        for job in todo:
            if job in ready and self.in_time():
                self.times[job] = self.measure(*job)

    def _finals(self, tokens: int) -> Iterable[Job]:
        """The best variants at the neighbouring anchors, for each way of loading and number of
        rows; and the first GEMM with sorted rows where the second gains by TMA."""
        for anchor in anchors_of(tokens):
            groups: Groups = {}
            for (measured, variant), us in self.times.items():
                if measured == anchor and math.isfinite(us) and not variant.by_expert:
                    key = (variant.op, variant.tma, variant.tile.m)
                    groups.setdefault(key, []).append((us, variant))
            for (op, tma, rows), timed in groups.items():
                best = [variant for _, variant in sorted(timed)[:FINALISTS]]
                yield from ((tokens, variant) for variant in best)
                if op == "up" and self._gains(groups, rows):
                    for variant in best[:2]:
                        yield tokens, Variant("up", variant.tile, tma, by_expert=True)

    def _gains(self, groups: Groups, rows: int) -> bool:
        """Whether the second GEMM is faster by TMA."""
        by_tma, plain = groups.get(("down", True, rows)), groups.get(("down", False, rows))
        return by_tma is not None and plain is not None and min(by_tma)[0] < min(plain)[0]

    def best(self, tokens: int) -> Pair:
        """The pair with the least time. SGLang's own where nothing else was measured."""
        candidates = []
        for rows in {variant.tile.m for measured, variant in self.times if measured == tokens}:
            for by_expert, margin in ((False, 1.0), (True, _SORTED_MARGIN)):
                up = self._fastest(tokens, rows, "up", by_expert)
                down = self._fastest(tokens, rows, "down", by_expert)
                if up and down:
                    candidates.append(((up[0] + down[0]) * margin, (up[1], down[1])))
        return min(candidates)[1] if candidates else self.defaults[tokens]

    def _fastest(
        self, tokens: int, rows: int, op: str, by_expert: bool
    ) -> tuple[float, Variant] | None:
        """A second GEMM with TMA needs sorted rows; a first one may have TMA with or without."""
        timed = [
            (us * (_TMA_MARGIN if op == "up" and variant.tma else 1.0), variant)
            for (measured, variant), us in self.times.items()
            if (measured, variant.op, variant.tile.m) == (tokens, op, rows)
            and math.isfinite(us)
            and by_expert == (variant.by_expert if op == "up" else variant.tma)
        ]
        return min(timed, default=None)

    def us(self, tokens: int, pair: Pair) -> float:
        return sum(self.times.get((tokens, variant), math.nan) for variant in pair)


def _in_turns(spaces: Sequence[tuple[int, Sequence[Variant]]]) -> Iterable[Job]:
    """One job of each anchor in turn, so that a cut leaves measurements for every anchor."""
    for i in range(max((len(variants) for _, variants in spaces), default=0)):
        yield from ((anchor, variants[i]) for anchor, variants in spaces if i < len(variants))
