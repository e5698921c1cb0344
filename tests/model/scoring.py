"""Ask an engine, ask the oracle, compare.

Owns: the prompts that every configuration must answer alike, the form of an answer, and the
tolerances. The oracle reads an answer's whole token sequence in one pass, so "the engine's greedy
tokens" means: each of them is the oracle's first choice after those before it.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from sglang_longcat.reference import ReferenceModel, Semantics
from tests.harness import Engine

BOS, EOS = 1, 2
NEW = 8  # tokens generated per prompt
# fp32 sums of about a thousand terms in another order: 3e-5 seen over all configurations of this
# folder. The mildest wrong rule that `test_engine` tries moves a logprob of every prompt by 1.5.
NATS = 1e-4


@dataclass(frozen=True)
class Answer:
    """A prompt, what the engine appended, and its logprobs: position in the sequence -> nats."""

    prompt: list[int]
    output: list[int]
    logprobs: dict[int, float] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def sequence(self) -> tuple[int, ...]:
        return (*self.prompt, *self.output)


class Oracle:
    """The reference model with a memory: engines give the same sequence over and over."""

    def __init__(self, path: Path, **options: Any) -> None:
        model = ReferenceModel.from_checkpoint(path, **options)
        self.logits: Callable[[tuple[int, ...]], torch.Tensor] = functools.cache(model)

    def gap(self, answer: Answer) -> float:
        """The largest |engine - oracle| over the logprobs of `answer`."""
        return max(self.gaps(answer), default=0.0)

    def gaps(self, answer: Answer) -> list[float]:
        table = self.logits(answer.sequence).log_softmax(dim=-1)
        return [
            abs(logprob - table[position - 1, answer.sequence[position]].item())
            for position, logprob in answer.logprobs.items()
        ]

    def choices(self, answer: Answer, *, bias: dict[int, float] | None = None) -> list[int]:
        """The oracle's first choice at each position of the output, given all before it."""
        logits = self.logits(answer.sequence)[len(answer.prompt) - 1 : -1].clone()
        for token, gain in (bias or {}).items():
            logits[:, token] += gain
        return logits.argmax(dim=-1).tolist()


def ask(
    llm: Engine, prompts: Sequence[list[int]], *, logprobs_from: int | None = -1, **sampling: Any
) -> list[Answer]:
    """Greedy unless `sampling` says otherwise. logprobs_from: a prompt position, -1 for the output
    only, None for no logprobs at all (SGLang mixes no chunks when they are asked for)."""
    sampling = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True} | sampling
    replies = llm.generate(
        input_ids=list(prompts),
        sampling_params=sampling,
        return_logprob=logprobs_from is not None,
        logprob_start_len=-1 if logprobs_from is None else logprobs_from,
    )
    copies = sampling.get("n", 1)
    return [answer(prompts[i // copies], reply) for i, reply in enumerate(replies)]


def answer(prompt: list[int], reply: dict[str, Any]) -> Answer:
    """An Answer from a reply of `Engine.generate` or POST /generate."""
    meta, output = reply["meta_info"], reply["output_ids"]
    entries = [
        *meta.get("input_token_logprobs", ()),
        *meta.get("output_token_logprobs", ()),
    ]
    sequence = [*prompt, *output]
    first = len(sequence) - len(entries)
    logprobs = {}
    for position, (logprob, token, _) in enumerate(entries, start=first):
        assert token == sequence[position], f"a logprob at {position} is not this sequence's"
        if logprob is not None:  # nothing predicts a sequence's first token
            logprobs[position] = logprob
    return Answer(prompt, output, logprobs, meta)


def assert_same(answers: Iterable[Answer], oracle: Oracle, *, nats: float = NATS) -> None:
    """Every logprob within `nats` of the oracle's, every output token its first choice."""
    for item in answers:
        assert item.output == oracle.choices(item), f"other tokens after {item.prompt}"
        assert oracle.gap(item) < nats, f"other logprobs after {item.prompt}"


def text(length: int, *, seed: int) -> list[int]:
    """`length` tokens: BOS and then ordinary ones."""
    draw = random.Random(seed)
    return [BOS, *(draw.randrange(30, 2000) for _ in range(length - 1))]


def fixed_prompts() -> dict[str, list[int]]:
    """Lengths around the n-gram order, and every place where an EOS can cut a look-back."""
    lengths = {f"{n} tokens": text(n, seed=n) for n in (1, 2, 3, 4, 17, 200)}
    ends = {f"EOS {d} from the end": _with_eos(text(12, seed=20 + d), -1 - d) for d in range(4)}
    inside = {
        "EOS inside": _with_eos(text(20, seed=30), 5, 11),
        "EOS adjacent": _with_eos(text(20, seed=31), 4, 5, 9, 10, 11, 13, 15),
        "EOS first": [EOS, *text(6, seed=32)[1:]],
        "EOS only": [EOS] * 3,
    }
    repeated = {"one token": [BOS, *[777] * 20], "a pair": [500, 501] * 9}
    return lengths | ends | inside | repeated


def _with_eos(tokens: list[int], *positions: int) -> list[int]:
    for position in positions:
        tokens[position] = EOS
    return tokens


def chat_prompt(path: Path) -> list[int]:
    """Two turns and a question: the template ends an assistant turn with EOS, so look-back is cut
    in the middle of a prompt."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    turns = [
        ("system", "Answer in one short sentence."),
        ("user", "What is a meituan?"),
        ("assistant", "A company that brings lunch."),
        ("user", "And a long cat?"),
        ("assistant", "A cat that is long."),
        ("user", "How long?"),
    ]
    rendered: str = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        add_generation_prompt=True,
        tokenize=False,
    )
    tokens: list[int] = tokenizer.encode(rendered, add_special_tokens=False)
    return tokens


@functools.cache
def mistaken(path: Path, rule: str) -> Oracle:
    """The oracle with one rule of the model broken. Tests ask it much the same."""
    return Oracle(path, semantics=Semantics(**{rule: False}))


def rewritten(path: Path, to: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of checkpoint `path` at `to`, hard-linked but for config.json, which `edit` sets."""
    shutil.copytree(path, to, copy_function=os.link)
    config = json.loads((path / "config.json").read_text())
    edit(config)
    (to / "config.json").unlink()  # the link, not the original
    (to / "config.json").write_text(json.dumps(config))
    return to
