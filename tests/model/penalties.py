"""Requests whose penalties depend on every token before, and the scores that the oracle gives then.

For the tests of drafting: a window's later rows are penalised for its earlier drafts.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from tests.model.scoring import Answer, Oracle, text

BIAS = dict.fromkeys(range(100, 140), 30.0)  # 40 words only, so that they repeat
PENALTIES: list[dict[str, Any]] = [
    {},
    {"frequency_penalty": 2.0},
    {"presence_penalty": 2.0},
    {"repetition_penalty": 1.9},
    {"frequency_penalty": 1.0, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"min_new_tokens": 11, "stop_token_ids": [100, 103], "ignore_eos": False},
]


def ask_penalised(llm: Any) -> list[Answer]:
    """Twice PENALTIES, of different lengths, so that requests come and go."""
    bias = {str(token): gain for token, gain in BIAS.items()}
    base = {"temperature": 0, "ignore_eos": True, "logit_bias": bias}
    asked = [*PENALTIES, *PENALTIES]
    sampling = [base | {"max_new_tokens": 16 + 5 * (i % 3)} | wish for i, wish in enumerate(asked)]
    prompts = [text(4 + i % 5, seed=80 + i) for i in range(len(asked))]
    replies = llm.generate(input_ids=prompts, sampling_params=sampling)
    return [Answer(prompt, reply["output_ids"]) for prompt, reply in zip(prompts, replies)]


def penalised_rows(judge: Oracle, answer: Answer, wish: dict[str, Any]) -> list[torch.Tensor]:
    """The oracle's scores at each token of the output, under the penalties for those before it."""
    return [_penalised(judge, answer, wish, i) for i in range(len(answer.output))]


def _penalised(judge: Oracle, answer: Answer, wish: dict[str, Any], i: int) -> torch.Tensor:
    row = judge.logits(answer.sequence)[len(answer.prompt) - 1 + i].clone()
    for token, count in Counter(answer.output[:i]).items():
        row[token] -= wish.get("frequency_penalty", 0) * count
        row[token] -= wish.get("presence_penalty", 0)
        scale = wish.get("repetition_penalty", 1)
        row[token] = row[token] / scale if row[token] > 0 else row[token] * scale
    if i < wish.get("min_new_tokens", 0):
        row[wish["stop_token_ids"]] = -torch.inf
    for token, gain in BIAS.items():
        row[token] += gain
    return row
