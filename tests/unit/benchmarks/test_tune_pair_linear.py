from __future__ import annotations

import pytest
import torch

from benchmarks.tune.pair_linear import candidates, space
from longcat_kernels.compile_only import compile_only
from longcat_kernels.fp8_layout import FP8, quantise
from longcat_kernels.small_linear.configs import Config, PairOp
from longcat_kernels.small_linear.launch import launch_pair

HOPPER_SHARED = 227 << 10


def demand(config: Config) -> int:
    return config.stages * config.block_k * config.block_n


@pytest.mark.parametrize("op", ["pair_linear", "pair_swiglu"])
def test_the_largest_candidate_fits_a_multiprocessor(op: PairOp) -> None:
    """Red if the estimate of shared memory lets a configuration pass that Hopper refuses: then most
    of a tuner's time goes into configurations that never run."""
    largest = max(space(op, 3072), key=demand)
    pair, weight = quantise(torch.zeros(32, 3072)), torch.zeros(256, 3072, dtype=FP8)
    with compile_only(90, shared_memory=HOPPER_SHARED):
        launch_pair(op, pair, weight, torch.zeros(2, 24), largest)


def test_candidates_are_the_same_each_time() -> None:
    drawn = candidates("pair_linear", 3072, 20)
    assert len(set(drawn)) == 20
    assert drawn == candidates("pair_linear", 3072, 20)
    assert all(3072 % config.block_k == 0 for config in drawn)
