from __future__ import annotations

import pytest

from benchmarks.tune.packed_linear import candidates, space
from longcat_kernels.packed_linear import workloads


@pytest.mark.parametrize("shape", workloads.RANKS[1], ids=lambda s: s.name)
def test_candidates_divide_as_the_kernel_needs(shape: workloads.Shape) -> None:
    """Red if a thread has a part of a tile, or tiles of two groups."""
    choice = list(space(shape.op, shape.columns))
    assert len(choice) >= 20
    for config in choice:
        assert config.span * 1024 * config.warps == config.block_n * config.block_k
        assert workloads.GROUP % (16 * config.span) == 0
        assert config.block_k % (16 * config.span) == 0


def test_candidates_are_the_same_each_time() -> None:
    drawn = candidates("linear", 3072, 20)
    assert len(set(drawn)) == 20
    assert drawn == candidates("linear", 3072, 20)
