"""The GPU's compute capability is the driver's, and nothing without a driver."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from sglang_longcat.host import gpu_by_driver


class Driver:
    """libcuda with `gpus` GPUs of capability 9.0. Functions return CUDA's error code, 0 if all is
    well."""

    def __init__(self, gpus: int, init: int = 0) -> None:
        self.gpus, self.init = gpus, init

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0 if ordinal < self.gpus else 101

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


@pytest.mark.parametrize(
    ("driver", "expected"), [(Driver(1), (9, 0)), (Driver(0), None), (Driver(1, init=999), None)]
)
def test_capability(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, expected: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert gpu_by_driver.capability() == expected


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_by_driver.capability() is None


@pytest.mark.gpu
def test_torch_sees_the_same() -> None:
    import torch

    assert gpu_by_driver.capability() == torch.cuda.get_device_capability()
