"""How LONGCAT_GPU_MEMORY_MIB makes a GPU look smaller. torch.cuda is invented: no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang_longcat.testing import smaller_gpu
from sglang_longcat.testing.smaller_gpu import MIB, SmallerGpu

TOTAL = 140_000 * MIB
CAPACITY = 24_000 * MIB
OTHERS = 500 * MIB  # in use before this process started


class Machine:
    """Two GPUs. `reserved` is what PyTorch's allocator took of the first, `outside` what CUDA,
    kernels and libraries did; `hidden` is memory that CUDA cannot give."""

    reserved = outside = hidden = 0
    share: float

    @property
    def used(self) -> int:
        return OTHERS + self.reserved + self.outside

    def free(self, device: object = None) -> tuple[int, int]:
        return TOTAL - self.used - self.hidden, TOTAL

    def set_share(self, share: float, device: int) -> None:
        assert device == 0
        self.share = share

    @property
    def allowed(self) -> float:
        """Bytes up to which PyTorch's allocator may grow."""
        return self.share * TOTAL


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    here = Machine()
    fakes = {
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "device_memory_used": lambda index: 0 if index else here.used,
        "memory_reserved": lambda index: here.reserved,
        "get_device_properties": lambda index: SimpleNamespace(total_memory=TOTAL),
        "set_per_process_memory_fraction": here.set_share,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return here


@pytest.mark.parametrize("device", [None, 0, "cuda", torch.device("cuda"), torch.device("cuda:0")])
def test_everything_that_the_process_takes_counts(machine: Machine, device: object) -> None:
    """Red if the context or other memory outside of PyTorch is free, if memory that was in use
    before counts, or if the total is the large GPU's."""
    gpu = SmallerGpu(CAPACITY)
    assert gpu.mem_get_info(machine.free, device) == (CAPACITY, CAPACITY)
    machine.reserved, machine.outside = 20_000 * MIB, 600 * MIB
    assert gpu.mem_get_info(machine.free, device) == (3_400 * MIB, CAPACITY)


def test_the_allocator_gets_what_the_rest_leaves(machine: Machine) -> None:
    """Red if PyTorch may grow to the whole capacity beside memory that others took of it."""
    gpu = SmallerGpu(CAPACITY)
    machine.reserved, machine.outside = 20_000 * MIB, 600 * MIB
    gpu.mem_get_info(machine.free)
    assert machine.allowed == pytest.approx(23_400 * MIB)


def test_no_more_than_there_is(machine: Machine) -> None:
    """Red if memory is reported that the large GPU does not have, or a negative amount."""
    gpu = SmallerGpu(CAPACITY)
    machine.hidden = TOTAL - OTHERS - 1_000 * MIB
    assert gpu.mem_get_info(machine.free)[0] == 1_000 * MIB
    machine.outside = CAPACITY + MIB
    machine.hidden = 0
    assert gpu.mem_get_info(machine.free)[0] == 0
    assert machine.allowed == 0
    large = SmallerGpu(2 * TOTAL)
    large.mem_get_info(machine.free)
    assert machine.share == 1.0


@pytest.mark.parametrize("value", ["", "24000"])
def test_hooks(
    value: str,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Red if a server that did not ask gets a smaller GPU, or if one that did keeps the large one
    in any of the functions that SGLang and we read: also those imported before the hooks."""
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.utils import common

    monkeypatch.setenv("LONGCAT_GPU_MEMORY_MIB", value)
    monkeypatch.setattr(common, "is_cuda", lambda: True)
    monkeypatch.setattr(common, "get_nvgpu_memory_capacity", lambda: 140_000.0)
    monkeypatch.setattr(torch.cuda.memory, "mem_get_info", machine.free)
    monkeypatch.setattr(torch.cuda, "mem_get_info", torch.cuda.memory.mem_get_info)
    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    smaller_gpu.register()
    HookRegistry.apply_hooks()
    capped = bool(value)
    assert common.get_device_memory_capacity("cuda") == (24_000 if capped else 140_000)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    props = SimpleNamespace(is_integrated=False, total_memory=TOTAL)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: props)
    free = common.get_available_gpu_memory("cuda", 0)
    assert free == pytest.approx((24_000 if capped else 139_500) / 1024)
    assert torch.cuda.mem_get_info()[1] == (CAPACITY if capped else TOTAL)
    assert ("smaller GPU: 24000 MiB" in capsys.readouterr().out) == capped


@pytest.mark.parametrize("value", ["24 GB", "0", "-1", "23.5"])
def test_wrong_values(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCAT_GPU_MEMORY_MIB", value)
    with pytest.raises(ValueError, match="expected the memory of a GPU in MiB"):
        smaller_gpu.register()
