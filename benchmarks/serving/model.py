"""A model directory for dummy weights: config.json of a recipe's checkpoint, and a tokenizer.

Owns: both files. The weights are SGLang's (`--load-format dummy`), spread by
`sglang_longcat.testing.dummy_routing`.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.engine import IN_TREE_CONFIG
from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.testing.tiny import TinyOptions, tiny_config

# What the in-tree class and ours read of the published FP8 checkpoint's config.
FP8_CONFIG = {
    "quantization_config": {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
    }
}
LETTERS = string.ascii_letters + string.digits


def write_model(directory: Path, *, checkpoint: str | None, in_tree: bool) -> Path:
    """Write `directory`. checkpoint: the recipe's model-path; None for the small model."""
    config = model_config(checkpoint) | (IN_TREE_CONFIG if in_tree else {})
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    write_words(directory, config["vocab_size"])
    return directory


def model_config(checkpoint: str | None) -> dict[str, Any]:
    if checkpoint is None:
        return tiny_config(TinyOptions())
    config: dict[str, Any] = json.loads(PUBLISHED_CONFIG.read_text())
    return config | (FP8_CONFIG if checkpoint.endswith("-FP8") else {})


def write_words(directory: Path, vocabulary: int) -> None:
    """A tokenizer whose every id is a word of three letters, with its space as long as an average
    token of English. SGLang's benchmark sees a token only if its text is not empty, and the streams
    should be as long as real ones."""
    words = {word(i): i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(kind))


def word(token: int) -> str:
    """The number `token` in three digits of base 62."""
    base = len(LETTERS)
    return "".join(LETTERS[token // base**place % base] for place in (2, 1, 0))
