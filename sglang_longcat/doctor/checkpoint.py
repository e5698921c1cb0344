"""Config, tensors, tokenizer, chat template and sampling defaults of a checkpoint directory.

Owns: these findings. Of the tensors it reads the headers only, so a 128 GiB checkpoint takes a
second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_longcat.checkpoint.check import CheckpointError, check_checkpoint, check_draft
from sglang_longcat.checkpoint.generation import SAMPLING
from sglang_longcat.config import LongcatConfig
from sglang_longcat.doctor.finding import Finding
from sglang_longcat.planning import sizing
from sglang_longcat.tool_parser import scan

_TAGS = (
    *("<longcat_system>", "<longcat_user>", "<longcat_assistant>", "</longcat_s>"),
    *(scan.CALL, scan.END_CALL, scan.KEY, scan.END_KEY, scan.VALUE, scan.END_VALUE),
)


def check(path: Path, *, draft: bool = False) -> tuple[LongcatConfig | None, list[Finding]]:
    """(config, or None where it cannot be served; findings). draft: it must have the MTP layer."""
    try:
        config = LongcatConfig.from_dir(path)
        if config.ngram is None:
            raise ValueError("config.json has no n-gram tables: this is not LongCat-Flash-Lite.")
        gib = sizing.weight_bytes(config) / sizing.GIB
        check_checkpoint(path, config)
        if draft:
            check_draft(path, config)
    except (OSError, ValueError, CheckpointError) as error:
        return None, [Finding.error("checkpoint", str(error))]
    stored = str(config.quant) if config.quant else "bf16"
    text = f"{gib:.1f} GiB, {stored}: names and shapes as config.json"
    return config, [Finding.ok("checkpoint", text), *_tokenizer(path, config), _sampling(path)]


def _tokenizer(path: Path, config: LongcatConfig) -> list[Finding]:
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    except (OSError, ValueError) as error:
        return [Finding.error("tokenizer", f"{error}. Download tokenizer.json again.")]
    wrong = [tag for tag in _TAGS if len(tokenizer.encode(tag, add_special_tokens=False)) != 1]
    if wrong:
        text = f"{', '.join(wrong)}: more than one token each. Download tokenizer.json again."
        return [Finding.error("tokenizer", text)]
    eos = tokenizer.convert_tokens_to_ids("</longcat_s>")
    if eos not in config.eos_token_ids:
        text = f"</longcat_s> is {eos}, config.json says {config.eos_token_ids}; fix eos_token_id"
        return [Finding.error("tokenizer", text)]
    return [Finding.ok("tokenizer", f"{len(tokenizer):,} tokens"), _template(tokenizer)]


def _template(tokenizer: Any) -> Finding:
    if not tokenizer.chat_template:
        advice = "none in the checkpoint: add --chat-template $(sglang-longcat template)"
        return Finding.warning("chat template", advice)
    if scan.CALL not in tokenizer.chat_template:
        return Finding.warning("chat template", "knows no tool calls; update the checkpoint's")
    return Finding.ok("chat template", "with tool calls")


def _sampling(path: Path) -> Finding:
    try:
        given = json.loads((path / "generation_config.json").read_text())
    except (OSError, ValueError):
        given = {}
    lacking = {name: value for name, value in SAMPLING.items() if given.get(name) != value}
    if not lacking:
        return Finding.ok("sampling", "defaults of the model card in generation_config.json")
    return Finding.warning(
        "sampling",
        f"generation_config.json differs from the model card; it recommends {json.dumps(lacking)}",
    )
