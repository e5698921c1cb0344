"""Weights loaded a second time, in a server that runs: the same, others, and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import engine, server
from tests.model.scoring import Oracle, ask, assert_same, rewritten, text
from tests.serving.http import post

PROMPTS = [text(length, seed=900 + length) for length in (2, 9, 33)]
EXPERT = "model.layers.1.mlp.experts.7.down_proj.weight"


@pytest.mark.parametrize("tp_size", [1, 2])
def test_update_and_back(tiny: Path, oracle: Oracle, tmp_path: Path, tp_size: int) -> None:
    """Red if loading twice is not loading once (the MLA norm factors multiplied in again, a table
    left behind), or if an update forgets the radix cache."""
    other = write_tiny(tmp_path / "other", TinyOptions(seed=1))
    with engine(tiny, tp_size=tp_size) as llm:
        before = ask(llm, PROMPTS, logprobs_from=0)
        assert_same(before, oracle)
        for path, expected in ((tiny, oracle), (other, Oracle(other)), (tiny, oracle)):
            done, message, _ = llm.call("update_weights_from_disk", str(path))
            assert done, message
            assert_same(ask(llm, PROMPTS), expected)
        after = ask(llm, PROMPTS, logprobs_from=0)
    assert [answer.logprobs for answer in after] == [answer.logprobs for answer in before]


def without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[EXPERT]


def cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors[EXPERT] = tensors[EXPERT][:-1].contiguous()


@pytest.mark.parametrize("damage", [without, cut])
def test_broken_update_is_refused(
    tiny: Path,
    oracle: Oracle,
    tmp_path: Path,
    damage: Callable[[dict[str, torch.Tensor]], None],
) -> None:
    """Red if new weights are let in that lack a tensor (its old value would stay) or hold one of
    another shape (SGLang's rollback would end the scheduler), or if a refused update changes what
    is served."""
    whole = write_tiny(tmp_path / "whole", TinyOptions(seed=1))
    broken = rewritten(whole, tmp_path / "broken", lambda config: None)
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    shard = broken / index["weight_map"][EXPERT]
    tensors = load_file(shard)
    damage(tensors)
    shard.unlink()
    save_file(tensors, shard, metadata={"format": "pt"})
    with engine(tiny) as llm:
        done, message, _ = llm.call("update_weights_from_disk", str(broken))
        assert not done
        assert EXPERT in message
        assert_same(ask(llm, PROMPTS, logprobs_from=0), oracle)
        done, message, _ = llm.call("update_weights_from_disk", str(whole))
        assert done, message
        assert_same(ask(llm, PROMPTS, logprobs_from=0), Oracle(whole))


class Zeros:
    """Becomes a tensor in the process that reads it. Tensors of the test's process cannot be sent:
    they are shared memory, for which the engine lacks the key."""

    def __init__(self, *size: int, dtype: torch.dtype = torch.float32) -> None:
        self.size, self.dtype = size, dtype

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple[int, ...]]:
        return partial(torch.zeros, dtype=self.dtype), self.size


NORM = ("model.norm.weight", Zeros(768))
WRONG_TENSORS = [
    ("lm_head.weight", Zeros(5)),
    ("model.unheard_of", Zeros(768)),
    ("model.mtp.norm.weight", Zeros(5)),
    ("model.norm.weight", Zeros(768, dtype=torch.int32)),
    ("model.norm.weight", Zeros(768, dtype=torch.float8_e4m3fn)),
    # SGLang would drop it without a word, because its layer has both latents.
    ("model.layers.0.self_attn.0.q_a_proj.weight", Zeros(384, 768)),
    ("model.mtp.layers.0.self_attn.q_a_proj.weight", Zeros(384, 768)),
]


def test_wrong_tensors_are_refused(tiny: Path, oracle: Oracle) -> None:
    """Red if an update from memory with one wrong tensor ends the scheduler, or leaves the right
    tensor before it in the model, or if a right update is refused after it."""
    with engine(tiny) as llm:

        def update(*tensors: tuple[str, Zeros]) -> tuple[bool, str]:
            llm.call("begin_weight_update")
            answer = llm.call("update_weights_from_tensor", list(tensors))
            llm.call("end_weight_update")
            return answer

        for wrong in WRONG_TENSORS:
            done, message = update(NORM, wrong)
            assert not done
            assert wrong[0] in message
        assert_same(ask(llm, PROMPTS, logprobs_from=0), oracle)
        done, message = update(NORM)
        assert done, message
        with pytest.raises(AssertionError):
            assert_same(ask(llm, PROMPTS, logprobs_from=0), oracle)


def test_random_weights_are_replaced(tiny: Path, oracle: Oracle) -> None:
    """A trainer's proof that an update reaches every weight: a snapshot, random values, the update.
    Red if the random values reach what no update brings back, as the hash's constants. (SGLang's
    comparison at the end needs CUDA.)"""
    steps: list[tuple[str, dict[str, str]]] = [
        ("/weights_checker", {"action": "snapshot"}),
        ("/weights_checker", {"action": "reset_tensors"}),
        ("/update_weights_from_disk", {"model_path": str(tiny)}),
    ]
    with server(tiny) as running:
        for path, body in steps:
            status, said = post(running, path, body)
            assert status == 200, (body, said)
        for prompt in PROMPTS:
            sampling = {"temperature": 0, "max_new_tokens": 8}
            status, said = post(
                running, "/generate", {"input_ids": prompt, "sampling_params": sampling}
            )
            assert status == 200, said
            assert json.loads(said)["output_ids"] == oracle.logits.__wrapped__.greedy(prompt, 8)
