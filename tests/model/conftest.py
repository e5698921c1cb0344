"""The small checkpoint, its oracle, and one engine's answers to all prompts, shared by this folder.

Owns: the fixtures that are written or computed once per test run. `scoring` compares engines with
the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sglang_longcat.testing.tiny import write_tiny
from tests.harness import engine
from tests.model.drafting import predictable
from tests.model.scoring import Answer, Oracle, ask, chat_prompt, fixed_prompts


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The oracle shares two cores with the engine with which it is compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def oracle(tiny: Path) -> Oracle:
    return Oracle(tiny)


@pytest.fixture(scope="session")
def checkpoint(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its drafts are right half of the time."""
    return predictable(tiny, tmp_path_factory.mktemp("drafting") / "predictable")


@pytest.fixture(scope="session")
def judge(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


@pytest.fixture(scope="session")
def prompts(tiny: Path) -> dict[str, list[int]]:
    return fixed_prompts() | {"chat": chat_prompt(tiny)}


@pytest.fixture(scope="session")
def together(tiny: Path, prompts: dict[str, list[int]]) -> dict[str, Answer]:
    """The answers of a TP1 engine that got all prompts in one call."""
    with engine(tiny) as llm:
        answers = ask(llm, list(prompts.values()), logprobs_from=0)
    return dict(zip(prompts, answers, strict=True))
