"""LongCat-nano's numbers: an engine's log probabilities and greedy answers against the reference's.

Owns: the metrics, and the known mistakes that must change them. The checkpoint has the text
(held_out.json, golden.json), and report.py compares numbers with limits.

  perplexity            exp(-mean log p(token | all tokens before it)) over all windows
  top1                  share of tokens that were the most likely token
  after_eos_perplexity  perplexity of tokens after one whose n-gram look-back is cut by an EOS
  mean_gap, max_gap     |log p of the engine - log p of the reference|, in nats
  decode_gap            mean of that gap over the tokens that the engine itself chose in decoding
  golden                share of greedy answers that equal the recorded ones, token for token
"""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_longcat.reference import ReferenceModel, Semantics

Reply = dict[str, Any]
Generate = Callable[..., list[Reply]]  # SGLang's Engine.generate or POST /generate
Cache = Callable[[Tensor, int], Tensor] | None  # of `ReferenceModel.from_checkpoint`

MISTAKES = {
    "bigrams one token late": Semantics(late_order=2),
    "4-grams one token late": Semantics(late_order=4),
    "no EOS rule": Semantics(eos_cuts_lookback=False),
    "identity experts times 1": Semantics(identity_scaled=False),
}


@dataclass(frozen=True)
class Text:
    """Windows of held-out tokens, and prompts with the reference's greedy answers."""

    windows: list[list[int]]
    golden: list[dict[str, Any]]
    after_eos: list[Tensor]

    @classmethod
    def of(cls, checkpoint: Path) -> Text:
        windows = json.loads((checkpoint / "held_out.json").read_text())["windows"]
        golden = json.loads((checkpoint / "golden.json").read_text())
        config = json.loads((checkpoint / "config.json").read_text())
        reach, eos = config["emb_neighbor_num"], config["eos_token_id"]
        return cls(windows, golden, [_after_eos(w, eos=eos, reach=reach) for w in windows])

    @property
    def tokens(self) -> int:
        return sum(len(window) - 1 for window in self.windows)


def _after_eos(window: Sequence[int], *, eos: int, reach: int) -> Tensor:
    """[T-1] bool: entry t is for token t+1. True if the look-back of token t meets an EOS."""
    return torch.tensor([eos in window[max(0, t - reach + 1) : t] for t in range(len(window) - 1)])


@dataclass(frozen=True)
class Scores:
    """Per window, [T-1]: log p of each token except the first, and whether it was the most
    likely."""

    logprobs: list[Tensor]
    hits: list[Tensor]


@dataclass(frozen=True)
class Oracle:
    """The fp32 reference model and its scores of the windows."""

    model: ReferenceModel
    scores: Scores

    @classmethod
    def of(cls, checkpoint: Path, text: Text) -> Oracle:
        model = ReferenceModel.from_checkpoint(checkpoint)
        return cls(model, reference_scores(model, text))


@torch.no_grad()
def reference_scores(model: ReferenceModel, text: Text) -> Scores:
    scores = Scores([], [])
    for window in text.windows:
        tokens = torch.tensor(window)
        table = model(tokens)[:-1].log_softmax(dim=-1)
        scores.logprobs.append(table.gather(1, tokens[1:, None]).squeeze(1))
        scores.hits.append(table.argmax(dim=-1) == tokens[1:])
    return scores


def engine_scores(generate: Generate, text: Text, *, cached: int = 0) -> Scores:
    """The engine's scores of the windows.

    cached: the number of tokens of each window that a first request reads. SGLang then takes them
    from its prefix cache, and scores only the tokens after them.
    """
    if cached:
        _generate(generate, [window[:cached] for window in text.windows])
    replies = _generate(
        generate,
        text.windows,
        return_logprob=True,
        logprob_start_len=cached,
        top_logprobs_num=1,
    )
    if cached and not all(reply["meta_info"]["cached_tokens"] >= cached - 1 for reply in replies):
        raise RuntimeError("the prefix cache was not used; expected --disable-radix-cache unset")
    scores = Scores([], [])
    for window, reply in zip(text.windows, replies, strict=True):
        meta = reply["meta_info"]
        logprobs, tops = meta["input_token_logprobs"][1:], meta["input_top_logprobs"][1:]
        tokens = [token for _, token, _ in logprobs]
        assert tokens == window[len(window) - len(tokens) :], "logprobs of other tokens"
        scores.logprobs.append(torch.tensor([logprob for logprob, _, _ in logprobs]))
        scores.hits.append(
            torch.tensor([top[0][1] == token for top, token in zip(tops, tokens, strict=True)])
        )
    return scores


def _generate(generate: Generate, prompts: list[list[int]], **options: Any) -> list[Reply]:
    return generate(
        input_ids=prompts,
        sampling_params={"temperature": 0, "max_new_tokens": 1, "ignore_eos": True},
        **options,
    )


def greedy(generate: Generate, text: Text, model: ReferenceModel) -> dict[str, float]:
    """`golden` and `decode_gap` of an engine."""
    right, gaps = 0, []
    for entry in text.golden:
        sampling = {"temperature": 0, "max_new_tokens": len(entry["output_ids"])}
        [reply] = generate(
            input_ids=[entry["prompt_ids"]],
            sampling_params=sampling | {"ignore_eos": True},
            return_logprob=True,
        )
        output = reply["output_ids"]
        logprobs = [logprob for logprob, *_ in reply["meta_info"]["output_token_logprobs"]]
        right += output == entry["output_ids"]
        gaps.append(torch.tensor(logprobs) - _answer_logprobs(model, entry["prompt_ids"], output))
    return _greedy_metrics(right / len(text.golden), gaps)


def _answer_logprobs(model: ReferenceModel, prompt: list[int], output: list[int]) -> Tensor:
    return model.logprobs(prompt + output)[len(prompt) - 1 :]


def _greedy_metrics(golden: float, gaps: list[Tensor]) -> dict[str, float]:
    return {"golden": golden, "decode_gap": torch.cat(gaps).abs().double().mean().item()}


def metrics(text: Text, scores: Scores, reference: Scores) -> dict[str, float]:
    """All metrics of given text. `scores` may start later than a window; then only the tokens that
    they cover are compared."""
    lengths = [len(part) for part in scores.logprobs]

    def cut(parts: list[Tensor]) -> Tensor:
        return torch.cat([part[len(part) - n :] for part, n in zip(parts, lengths, strict=True)])

    logprobs, hits, marked = cut(scores.logprobs), cut(scores.hits), cut(text.after_eos)
    gaps = (logprobs - cut(reference.logprobs)).abs()
    return {
        "perplexity": math.exp(-logprobs.double().mean()),
        "top1": hits.double().mean().item(),
        "after_eos_perplexity": math.exp(-logprobs[marked].double().mean()),
        "mean_gap": gaps.double().mean().item(),
        "max_gap": gaps.max().item(),
    }


def measure(generate: Generate, text: Text, oracle: Oracle) -> dict[str, float]:
    """All metrics of an engine."""
    of_text = metrics(text, engine_scores(generate, text), oracle.scores)
    return of_text | greedy(generate, text, oracle.model)


def measure_mistake(
    checkpoint: Path, text: Text, oracle: Oracle, semantics: Semantics, cache: Cache = None
) -> dict[str, float]:
    """All metrics of the reference model with a broken rule, as of an engine that breaks it. cache:
    through which that engine sees its tokens."""
    wrong = ReferenceModel.from_checkpoint(checkpoint, semantics=semantics, cache=cache)
    right, gaps = 0, []
    for entry in text.golden:
        prompt, output = entry["prompt_ids"], entry["output_ids"]
        chosen = wrong(prompt + output)[len(prompt) - 1 : -1].argmax(dim=-1)
        right += chosen.tolist() == output
        given = (prompt, output)
        gaps.append(_answer_logprobs(wrong, *given) - _answer_logprobs(oracle.model, *given))
    of_text = metrics(text, reference_scores(wrong, text), oracle.scores)
    return of_text | _greedy_metrics(right / len(text.golden), gaps)


def over_http(base_url: str, *, timeout: float = 600) -> Generate:
    """POST /generate of a running server."""

    def generate(**payload: Any) -> list[Reply]:
        request = urllib.request.Request(
            f"{base_url}/generate",
            data=json.dumps(payload).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:
            replies: list[Reply] = json.loads(response.read())
        return replies

    return generate
