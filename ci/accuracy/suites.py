"""Suites that lm-eval asks a running server (`pip install "sglang-longcat[eval]"`).

Owns: which lm-eval task stands for which published number, how it is asked, and the two small
suites with local data that test this path with LongCat-nano. lm-eval does prompts, answer
extraction and scoring; thresholds.toml has the published figures. lm_eval is imported only when a
suite runs.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.accuracy.report import Row, thresholds
from sglang_longcat.checkpoint.generation import SAMPLING

_DATA = Path(__file__).with_name("tasks")
_SPREAD = 3  # standard errors by which a result may be below the published one, besides `points`
# Both are explicit: the server applies the model card's sampling to a request that leaves it out.
_GREEDY: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0}
_SAMPLED: dict[str, Any] = {"do_sample": True, **SAMPLING}


@dataclass(frozen=True)
class Suite:
    """task: lm-eval's name of it, or a task in lm-eval's format. chat: ask /v1/chat/completions,
    with the model's template; otherwise /v1/completions. sampling: of generated answers."""

    task: str | dict[str, Any]
    metric: str
    chat: bool
    sampling: dict[str, Any] = field(default_factory=lambda: _GREEDY)
    few_shot: int | None = None

    @property
    def name(self) -> str:
        return self.task if isinstance(self.task, str) else str(self.task["task"])


def _local(name: str, **task: Any) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(_DATA / f"{name}.jsonl")}},
        "test_split": "test",
        **task,
    }


_NAMES = _local(
    "nano_names",
    output_type="generate_until",
    doc_to_text="Write the function {{name}}.",
    doc_to_target="{{name}}",
    generation_kwargs={"until": ["<longcat_user>"], "max_gen_toks": 24},
    filter_list=[
        {
            "name": "def",
            "filter": [
                {"function": "regex", "regex_pattern": r"def (\w+)\("},
                {"function": "take_first"},
            ],
        }
    ],
    metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
)
_CHOICES = _local(
    "nano_choices",
    output_type="multiple_choice",
    doc_to_text="{{context}}",
    doc_to_choice="{{choices}}",
    doc_to_target="{{answer}}",
    target_delimiter="",
    metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
)
SUITES = {
    "gsm8k": Suite("gsm8k", "exact_match,flexible-extract", chat=False, few_shot=5),
    "mmlu": Suite("mmlu", "acc,none", chat=False, few_shot=5),
    "mmlu_pro": Suite("mmlu_pro", "exact_match,custom-extract", chat=True, sampling=_SAMPLED),
    "gpqa_diamond": Suite(
        "gpqa_diamond_cot_zeroshot", "exact_match,flexible-extract", chat=True, sampling=_SAMPLED
    ),
    "ceval": Suite("ceval-valid", "acc,none", chat=False, few_shot=5),
    "cmmlu": Suite("cmmlu", "acc,none", chat=False, few_shot=5),
    "math500": Suite("minerva_math500", "math_verify,none", chat=True, sampling=_SAMPLED),
    "aime24": Suite("aime24", "exact_match,none", chat=True, sampling=_SAMPLED),
    "aime25": Suite("aime25", "exact_match,none", chat=True, sampling=_SAMPLED),
    "nano_names": Suite(_NAMES, "exact_match,def", chat=True),
    "nano_choices": Suite(_CHOICES, "acc,none", chat=False),
}


def run(names: Iterable[str], *, base_url: str, limit: int | None, concurrency: int) -> list[Row]:
    """One row per suite. Exits if lm-eval or a suite is missing."""
    names = list(names)
    unknown = sorted(set(names) - set(SUITES))
    if unknown:
        sys.exit(f"no suite {', '.join(unknown)}; there are: nano, {', '.join(SUITES)}")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        sys.exit(
            "these suites need lm-eval, which is not installed. Into an environment of your own: "
            'pip install "sglang-longcat[eval]"; or run --suite nano, which needs none.'
        )
    suites = [SUITES[name] for name in names]
    # Reading the index of lm-eval's own tasks takes 6 s: once, and only if one of them is asked.
    index = TaskManager(include_defaults=any(isinstance(suite.task, str) for suite in suites))
    return [
        row(
            name,
            lm_eval.simple_evaluate(
                task_manager=index, **_call(suite, base_url, limit, concurrency)
            ),
        )
        for name, suite in zip(names, suites, strict=True)
    ]


def _call(suite: Suite, base_url: str, limit: int | None, concurrency: int) -> dict[str, Any]:
    """The arguments of lm_eval.simple_evaluate."""
    served = _get(f"{base_url}/v1/models")["data"][0]["id"]
    model = {"model": served, "num_concurrent": concurrency, "max_retries": 3, "timeout": 3600}
    if suite.chat:
        name, model["base_url"] = "local-chat-completions", f"{base_url}/v1/chat/completions"
    else:
        name, model["base_url"] = "local-completions", f"{base_url}/v1/completions"
        _let_transformers_read_the_config()
        # lm-eval finds the scores of a continuation by its tokens, so it needs the model's
        # tokenizer.
        model |= {"tokenizer_backend": "huggingface", "tokenizer": _tokenizer(base_url)}
    return {
        "model": name,
        "model_args": model,
        "tasks": [suite.task],
        "num_fewshot": suite.few_shot,
        "limit": limit,
        "apply_chat_template": suite.chat,
        "gen_kwargs": dict(suite.sampling),
        "bootstrap_iters": 1000,
        "log_samples": True,
    }


def _let_transformers_read_the_config() -> None:
    """transformers does not know the model, and loads no tokenizer with a config it cannot read."""
    from transformers import AutoConfig, PretrainedConfig

    class Config(PretrainedConfig):
        model_type = "longcat_flash_ngram"
        max_position_embeddings: int = 0

    AutoConfig.register(Config.model_type, Config, exist_ok=True)


def _tokenizer(base_url: str) -> str:
    return str(_get(f"{base_url}/model_info")["tokenizer_path"])


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.loads(response.read())


def row(name: str, results: Mapping[str, Any]) -> Row:
    """A row from the results of lm-eval: in percent, with the published or recorded figure."""
    suite = SUITES[name]
    limit: dict[str, Any] = thresholds("suite", name)
    scores = results["results"][suite.name]
    if suite.metric not in scores:
        raise KeyError(f"lm-eval gave {sorted(scores)} for {suite.name}, not {suite.metric}")
    metric, _, filtered = suite.metric.partition(",")
    error = scores.get(f"{metric}_stderr,{filtered}")
    stderr = 100 * error if isinstance(error, float) else 0.0
    return Row(
        gate=name,
        measured=100 * float(scores[suite.metric]),
        expected=limit["expected"],
        low=limit["expected"] - limit["points"] - _SPREAD * stderr,
        high=100.0,
        sample=f"{_questions(results)} questions",
        stderr=stderr,
    )


def _questions(results: Mapping[str, Any]) -> int:
    return sum(count["effective"] for count in results["n-samples"].values())
