"""What the accuracy gates ask LongCat-nano: held-out windows, and prompts with greedy answers.

Owns: which text they are, and held_out.json and golden.json. Each window is a separate prompt.
ci/accuracy measures with them.
"""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_longcat.reference import ReferenceModel

_WIDTH = 384  # tokens; shorter than a training row
_SPREAD, _CONVERSATIONS = 12, 12  # windows
_NEW = 48
_ROLES = ("user", "assistant")
_ANSWER = '```python\ndef close(self):\n    """Close the file."""\n    self._file.close()\n```'
_PROMPTS = (  # user, assistant, user, ...: an assistant's turn ends with EOS
    ("Write the function read_text.",),
    ("Write a Python function named is_even. Return True if n is even.",),
    ("What is a graph?",),
    ("Write a Python function: Close the file.", _ANSWER, "Write the function read_text."),
)


def write_held_out(data: Path, file: Path, *, eos: int) -> None:
    """Write windows at equal distances, and those with the most EOS, where the EOS rule applies."""
    with np.load(data / "tokens.npz") as arrays:
        tokens = arrays["held_out"].astype(int)
    rows = tokens[: len(tokens) // _WIDTH * _WIDTH].reshape(-1, _WIDTH)
    spread = set(np.linspace(0, len(rows) - 1, _SPREAD).astype(int).tolist())
    chosen = sorted(spread | set(_most_eos(rows, eos=eos, but=spread)))
    about = f"{len(chosen)} of {len(rows)} windows of the held-out files in data.json"
    windows = ",\n".join(json.dumps(rows[row].tolist(), separators=(",", ":")) for row in chosen)
    file.write_text(f'{{"about": "{about}",\n"windows": [\n{windows}\n]}}\n')


def _most_eos(rows: NDArray[Any], *, eos: int, but: set[int]) -> list[int]:
    counts = (rows == eos).sum(axis=1)
    order = np.argsort(-counts, kind="stable").tolist()
    return [row for row in order if row not in but][:_CONVERSATIONS]


def write_golden(checkpoint: Path) -> None:
    """Write golden.json: the reference model's greedy answers in fp32, up to EOS, with `margin`.

    margin: the smallest distance in nats between the chosen token and the second one. An engine
    whose sums differ by less must give the same tokens.
    """
    from transformers import PreTrainedTokenizerFast

    model = ReferenceModel.from_checkpoint(checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    answers = [_answer(model, tokenizer, prompt) for prompt in _PROMPTS]
    (checkpoint / "golden.json").write_text(json.dumps(answers, indent=1) + "\n")


def _answer(model: ReferenceModel, tokenizer: Any, turns: tuple[str, ...]) -> dict[str, Any]:
    chat = [{"role": role, "content": turn} for role, turn in zip(cycle(_ROLES), turns)]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    tokens, margin = list(prompt), float("inf")
    while len(tokens) < len(prompt) + _NEW and tokens[-1] not in model.config.eos_token_ids:
        best = model(tokens)[-1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        tokens.append(int(best.indices[0]))
    output = tokens[len(prompt) :]
    return {
        "turns": turns,
        "answer": tokenizer.decode(output),
        "margin": round(margin, 4),
        "prompt_ids": prompt,
        "output_ids": output,
    }
