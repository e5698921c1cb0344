"""New weights come from memory or from a trainer while drafts run: text and acceptance as after a
fresh start. Updates from disk: test_weight_update.py, and test_draft_head.py for drafts.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sglang_longcat.reference import ReferenceModel
from sglang_longcat.testing.engine_flags import nextn
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import Engine, engine, free_port
from tests.model.drafting import Drafter, predictable
from tests.model.scoring import Oracle, ask, assert_same, text
from tests.model.test_speculative import assert_drafted

FP8 = {"LONGCAT_DRAFT_HEAD": "fp8"}
PROMPTS = [text(length, seed=700 + length) for length in (1, 6, 40)]
GROUP = "trainer"
Update = Callable[[Engine, Path], None]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights of the same sizes, whose drafts are often right too."""
    folder = tmp_path_factory.mktemp("live")
    return predictable(write_tiny(folder / "plain", TinyOptions(seed=1)), folder / "new")


class Stored:
    """Becomes the tensors of a file in the process that reads it. Tensors of the test's process
    cannot be sent: they are shared memory, for which the engine lacks the key."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return load_file, (str(self.file),)


class StoredTensor:
    """One of them. A pickle reads the file once, however many of its tensors it holds."""

    def __init__(self, stored: Stored, name: str) -> None:
        self.stored, self.name = stored, name

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Stored, str]]:
        return operator.getitem, (self.stored, self.name)


def shards(path: Path) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    for file in sorted(path.glob("*.safetensors")):
        yield file, load_file(file)


def from_memory(llm: Engine, path: Path) -> None:
    """A file at a time, as a trainer sends buckets."""
    for file, tensors in shards(path):
        stored = Stored(file)
        named = [(name, StoredTensor(stored, name)) for name in tensors]
        done, message = llm.call("update_weights_from_tensor", named)
        assert done, message


def from_trainer(llm: Engine, path: Path) -> None:
    """This process is rank 0 of the update group, which sends; the engine is rank 1."""
    from sglang.srt.utils import init_custom_process_group

    port = free_port()
    group = beside(
        lambda: init_custom_process_group(
            "gloo", f"tcp://127.0.0.1:{port}", None, 2, 0, None, GROUP
        ),
        lambda: llm.call("init_weights_update_group", "127.0.0.1", port, 1, 2, GROUP, "gloo"),
    )
    for _, tensors in shards(path):
        broadcast(llm, tensors, group)
    torch.distributed.destroy_process_group(group)


def broadcast(
    llm: Engine, tensors: dict[str, torch.Tensor], group: torch.distributed.ProcessGroup
) -> None:
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()]
    sizes = [list(tensor.shape) for tensor in tensors.values()]

    def send() -> None:
        for tensor in tensors.values():
            torch.distributed.broadcast(tensor, src=0, group=group)

    def receive() -> tuple[bool, str]:
        return llm.call("update_weights_from_distributed", list(tensors), dtypes, sizes, GROUP)

    beside(send, receive)


def beside(here: Callable[[], Any], there: Callable[[], tuple[bool, str]]) -> Any:
    """Both at the same time, since each waits for the other. What `here` returns."""
    answers: list[tuple[bool, str]] = []
    thread = threading.Thread(target=lambda: answers.append(there()))
    thread.start()
    result = here()
    thread.join()
    [(done, message)] = answers
    assert done, message
    return result


@pytest.mark.parametrize("update", [from_memory, from_trainer])
@pytest.mark.parametrize("env", [{}, FP8], ids=["own-head", "fp8-head"])
def test_drafts_follow_new_weights(
    checkpoint: Path, other: Path, update: Update, env: dict[str, str]
) -> None:
    """Red if the update reaches the target only (drafts are then hardly ever right), if it leaves
    n-gram rows, the draft's embedding or its copy of the head behind, or if cached prefixes of the
    old weights are used."""
    with engine(checkpoint, **nextn(3), env=env) as llm:
        ask(llm, PROMPTS, max_new_tokens=4)
        llm.call("begin_weight_update")
        update(llm, other)
        llm.call("end_weight_update")
        answers = ask(llm, PROMPTS, max_new_tokens=20)
    assert_same(answers, Oracle(other))
    reference = ReferenceModel.from_checkpoint(other)
    assert_drafted(answers, Drafter(reference, fp8_head=bool(env)), steps=3)
