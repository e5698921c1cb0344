"""The plan of a machine that is described, against what SGLang found on one of its size."""

import pytest

from sglang_longcat import recipes
from sglang_longcat.planning import reserve, sizing
from sglang_longcat.planning.estimate import read_config
from sglang_longcat.planning.plan import (
    CUDA_CONTEXT,
    MachineMemory,
    MemoryFlags,
    device_room,
    plan_memory,
)
from sglang_longcat.planning.roofline import GPUS
from sglang_longcat.planning.sizing import GIB, MIB
from sglang_longcat.recipes.memory import Hardware, memory_plan

LITE = read_config(None)
INT4 = sizing.in_int4(LITE)
RTX_4090 = 24_564 * MIB
# Of an H200 that looked like an RTX 4090, in SGLang's log: free before and after loading, in GiB.
FREE_BEFORE, FREE_AFTER = 23.30, 3.24


def test_what_sglang_found_free_is_what_a_plan_starts_from():
    """Red if the CUDA context is counted as free."""
    memory = MachineMemory.by_driver(RTX_4090, RTX_4090, host=0)
    assert memory.gpu_free / GIB == pytest.approx(FREE_BEFORE, abs=0.02)
    assert memory.gpu_total == memory.gpu_free
    assert memory.driver_total == RTX_4090
    assert MachineMemory.by_driver(RTX_4090, CUDA_CONTEXT / 2, host=0).gpu_free == 0


def test_four_bits_take_what_they_took():
    """Red if the holes are forgotten, or counted for a format that has not shown them."""
    memory, flags = MachineMemory.of_gpu(139), MemoryFlags(tables="host", mem_fraction=0.9)
    for config, holes in ((INT4, 0.65), (LITE, 0), (sizing.in_fp8(LITE), 0)):
        plan = plan_memory(config, memory, flags)
        taken = 139 * 0.9 - plan.room.device / GIB
        assert taken == pytest.approx(plan.gpu_weights / GIB + holes, abs=0.001)
        if holes:
            assert taken == pytest.approx(FREE_BEFORE - FREE_AFTER, abs=0.02)


def test_a_running_server_counts_no_holes():
    """Red if they are taken off what it measured, where the holes already are missing."""
    memory, flags = MachineMemory(10 * GIB, 5 * GIB), MemoryFlags(mem_fraction=0.9)
    assert device_room(memory, flags, weights=GIB) == pytest.approx(3 * GIB, abs=1)


def test_the_plan_of_24_gb_promises_what_sglang_gives():
    """Red if the recipe's plan promises more tokens than SGLang's rule leaves, or on a real card,
    which has less free, fewer than four requests of 4,096 tokens with 96 of answer need. See also
    tests/unit/host/test_memory_share."""
    recipe, gpu = recipes.find("24gb-tp1-int4"), GPUS["RTX-4090-24G"]

    def tokens(memory: MachineMemory) -> int:
        return memory_plan(recipe, Hardware("RTX-4090-24G", 1, memory), INT4, {}).kv_tokens

    reserve_mb = reserve.runtime_reserve_mb(1024, 4, 1, gpu_mb=24_564)
    left = FREE_AFTER - FREE_BEFORE * reserve_mb / 24_564
    seen = left * GIB / sizing.kv_bytes_per_token(INT4)
    assert tokens(MachineMemory.by_driver(RTX_4090, RTX_4090, 0)) == pytest.approx(seen, rel=0.05)
    assert 4 * (4096 + 96) <= tokens(MachineMemory.of_gpu(gpu.memory, gpu.shown)) < seen
    assert gpu.memory < FREE_BEFORE


def test_a_machine_without_a_gpu_has_no_room():
    plan = plan_memory(INT4, MachineMemory(0, 0), MemoryFlags(tables="host"))
    assert plan.kv_tokens <= 0


@pytest.mark.parametrize(
    ("gpu_mb", "tokens"), [(24_564, 4096), (32_607, 8192), (46_068, 32768), (143_771, 32768)]
)
def test_a_small_gpu_keeps_less_for_cached_prefixes(gpu_mb, tokens):
    """Red if the reserve counts other pieces than the server expands, 28 KiB a token."""
    assert reserve.prefix_tokens(gpu_mb) == tokens
    everything_else = 2048 + 0.27 * 2048
    kept = reserve.runtime_reserve_mb(2048, 0, 1, gpu_mb=gpu_mb) - everything_else
    assert kept == pytest.approx(tokens * 28 / 1024)
