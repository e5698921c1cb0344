"""What every test relies on: the CPU engine's environment, the GPU markers, how many processes.

Owns: setting the variables before anything imports torch or SGLang (both read them at import), and
skipping GPU tests with the reason. The folders of the tests have the fixtures for checkpoints and
engines.
"""

from __future__ import annotations

import os

import pytest

from launch.gpus import gpu_count
from sglang_longcat.cpu.environment import CPU_ENV

GPUS = gpu_count()
NEEDED = {"gpu": 1, "multi_gpu": 2}

if GPUS == 0:
    for name, value in CPU_ENV.items():
        os.environ.setdefault(name, value)


@pytest.hookimpl(optionalhook=True)  # also without xdist
def pytest_xdist_auto_num_workers() -> int:
    """An engine that starts keeps one core busy, and CI has two. Tests on GPUs run one by one: each
    takes most of the memory."""
    return 0 if GPUS else 2


def pytest_report_header() -> str:
    return f"GPUs: {GPUS}" + ("" if GPUS else " (SGLang's CPU engine)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, least in NEEDED.items():
            mark = item.get_closest_marker(marker)
            needed = max([least, *mark.args]) if mark else 0
            if needed > GPUS:
                reason = f"{marker}: needs {needed} CUDA GPU(s), this machine shows {GPUS}"
                item.add_marker(pytest.mark.skip(reason=reason))
