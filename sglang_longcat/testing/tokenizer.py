"""The small checkpoint's tokenizer: byte-level BPE with the LongCat special tokens.

Owns: which token has which id, and the tokenizer files. The ids are, in this order: specials, tags,
256 bytes, merges, reserved. Every UTF-8 text survives encode and decode. corpus.txt is the training
text (our own words; a change to it changes the ids of merges), and checkpoint/chat_template.jinja
is the conversation format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from sglang_longcat.checkpoint import CHAT_TEMPLATE

_HERE = Path(__file__).parent

UNK, BOS, EOS, PAD = "<longcat_unk>", "<longcat_s>", "</longcat_s>", "<longcat_pad>"
UNK_ID, BOS_ID, EOS_ID, PAD_ID = range(4)
SPECIALS = (UNK, BOS, EOS, PAD, "<longcat_system>", "<longcat_user>", "<longcat_assistant>")
_TAGS = ("tool_declare", "tool_call", "tool_response", "arg_key", "arg_value", "think", "files")
# Not "special" in the sense of `tokenizers`, because parsers must see them in decoded text.
TAGS = tuple(f"<{slash}longcat_{tag}>" for tag in _TAGS for slash in ("", "/"))
MIN_VOCAB = len(SPECIALS) + len(TAGS) + 256


@dataclass(frozen=True)
class Vocabulary:
    """Token to id, in the order of ids, and the merges in the order of training."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]

    @property
    def text_ids(self) -> list[int]:
        """Ids that decode to readable text alone: no control, reserved or partial tokens."""
        first, decode = len(SPECIALS) + len(TAGS), decoders.ByteLevel().decode
        texts = list(self.ids)[first : first + 256 + len(self.merges)]
        return [i for i, text in enumerate(texts, start=first) if _readable(decode([text]))]


def build_vocabulary(size: int, texts: Iterable[str] | None = None) -> Vocabulary:
    """Train on `texts` (default: our corpus) and fill up to `size` entries.

    Raises ValueError if `size` is too small.
    """
    if size < MIN_VOCAB:
        raise ValueError(
            f"vocab {size} is too small: control tokens and bytes alone need {MIN_VOCAB}."
        )
    corpus = [(_HERE / "corpus.txt").read_text(encoding="utf-8")] if texts is None else texts
    alphabet, merges = _train(corpus, limit=size - len(SPECIALS) - len(TAGS))
    tokens = [*SPECIALS, *TAGS, *alphabet, *("".join(pair) for pair in merges)]
    tokens += [f"<longcat_reserved_{i}>" for i in range(size - len(tokens))]
    return Vocabulary(ids={token: i for i, token in enumerate(tokens)}, merges=merges)


def write_tokenizer(path: Path, vocabulary: Vocabulary) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja."""
    model = models.BPE(vocab=vocabulary.ids, merges=vocabulary.merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_added(token, special=True) for token in SPECIALS])
    tokenizer.add_tokens([_added(token, special=False) for token in TAGS])
    tokenizer.save(str(path / "tokenizer.json"))
    named = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    _write_json(path / "special_tokens_map.json", named)
    _write_json(path / "tokenizer_config.json", named | _BEHAVIOUR)
    shutil.copyfile(CHAT_TEMPLATE, path / "chat_template.jinja")


_BEHAVIOUR = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 4096,
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,  # it would eat spaces before punctuation
}


def _train(texts: Iterable[str], *, limit: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The byte alphabet and at most `limit` - 256 merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=limit, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(texts, trainer=trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return alphabet, [(left, right) for left, right in merges]


def _readable(text: str) -> bool:
    return "\ufffd" not in text and (text.isprintable() or text.isspace())


def _added(token: str, *, special: bool) -> AddedToken:
    return AddedToken(token, special=special, normalized=False)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
