"""One small checkpoint for all serving tests, its oracle and its tokenizer.

Owns: these, and the oracle's greedy continuation of a prompt. The test modules start the servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sglang_longcat.reference import ReferenceModel
from sglang_longcat.testing.tiny import TinyOptions, write_tiny

Decode = Callable[[list[int], int], list[int]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = TinyOptions(experts=8, zero_experts=4, topk=3)
    return write_tiny(tmp_path_factory.mktemp("serving") / "tiny", options)


@pytest.fixture(scope="session")
def oracle(checkpoint: Path) -> Iterator[ReferenceModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ReferenceModel.from_checkpoint(checkpoint)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def greedy(oracle: ReferenceModel) -> Decode:
    """greedy(prompt ids, n): the oracle's next n tokens. None of them is EOS, which would end an
    answer."""

    def decode(prompt: list[int], count: int) -> list[int]:
        tokens = oracle.greedy(prompt, count)
        assert not set(tokens) & set(oracle.config.eos_token_ids), "choose another prompt"
        return tokens

    return decode
