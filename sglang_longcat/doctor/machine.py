"""GPUs, driver, NVLink, host memory and the limit of locked memory.

Owns: reading them. It changes nothing and does not import SGLang.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sglang_longcat.doctor.finding import Finding
from sglang_longcat.ngram.host_memory import available_bytes
from sglang_longcat.planning.plan import MachineMemory
from sglang_longcat.planning.sizing import GIB
from sglang_longcat.recipes.memory import Hardware

UNLIMITED = resource.RLIM_INFINITY


@dataclass(frozen=True)
class Device:
    name: str
    total: int  # bytes
    free: int
    nvlinks: int = 0


@dataclass(frozen=True)
class Machine:
    gpus: tuple[Device, ...]
    driver: str | None
    host: int  # bytes that this process may still allocate, its control group considered
    memlock: int  # RLIMIT_MEMLOCK in bytes, or UNLIMITED

    def hardware(self) -> Hardware:
        """As recipes compare it: of several GPUs, the memory of the one with the least free."""
        if not self.gpus:
            return Hardware("", 0, MachineMemory(gpu_total=0, gpu_free=0, host=self.host))
        least = min(self.gpus, key=lambda gpu: gpu.free)
        memory = MachineMemory.by_driver(least.total, least.free, self.host)
        return Hardware(least.name, len(self.gpus), memory)


def inspect() -> Machine:
    with _nvml() as nvml:
        gpus = tuple(_devices(nvml))
        driver = str(nvml.nvmlSystemGetDriverVersion()) if nvml else None
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return Machine(gpus=gpus, driver=driver, host=available_bytes(), memlock=memlock)


def check(here: Machine) -> list[Finding]:
    limit = "unlimited" if here.memlock == UNLIMITED else f"{here.memlock / GIB:.2f} GiB"
    memory = f"{here.host / GIB:.1f} GiB available to this process; locked memory: {limit}"
    return [*_gpus(here), Finding.info("host memory", memory)]


def _gpus(here: Machine) -> Iterator[Finding]:
    if not here.gpus:
        yield Finding.warning(
            "GPU", "none visible: only small checkpoints can be served, with --device cpu"
        )
        return
    sizes = ", ".join(
        f"{gpu.name} ({gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB free)" for gpu in here.gpus
    )
    yield Finding.ok("GPU", f"{sizes}; driver {here.driver}")
    if len(here.gpus) > 1:
        yield _links(here)


def _links(here: Machine) -> Finding:
    links = min(gpu.nvlinks for gpu in here.gpus)
    if links:
        return Finding.ok("NVLink", f"{links} links on each of {len(here.gpus)} GPUs")
    return Finding.warning(
        "NVLink",
        "none: tensor parallelism will wait for PCIe; prefer one server per GPU (--dp-size)",
    )


def _devices(nvml: Any) -> Iterator[Device]:
    for handle in _handles(nvml) if nvml else ():
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        yield Device(
            name=str(nvml.nvmlDeviceGetName(handle)),
            total=int(memory.total),
            free=int(memory.free),
            nvlinks=sum(_is_up(nvml, handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)),
        )


def _handles(nvml: Any) -> Iterator[Any]:
    """NVML's handles of the GPUs that CUDA_VISIBLE_DEVICES names; NVML itself ignores it."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = map(str, range(nvml.nvmlDeviceGetCount())) if named is None else named.split(",")
    for name in filter(None, map(str.strip, wanted)):
        if name.isdigit():
            yield nvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            yield nvml.nvmlDeviceGetHandleByUUID(name)


def _is_up(nvml: Any, handle: Any, link: int) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetNvLinkState(handle, link))
    except nvml.NVMLError:  # a GPU with fewer links, or none
        return False


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's library, or None where it or the driver is missing."""
    try:
        import pynvml  # of nvidia-ml-py, which SGLang depends on

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - ImportError or any error of NVML means: no GPU
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
