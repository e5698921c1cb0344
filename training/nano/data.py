"""Turns the text into tokens: `python -m training.nano prepare`; needs a CPU and `tokenizers`.

Owns: the folder that training reads: tokenizer files, `tokens.npz` (uint16 arrays), data.json
(origin and licences). A document is a file or a conversation. EOS ends each document and each
assistant turn. sources.py chooses the files, chat.py makes the conversations.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.nano.chat import Turn, conversations
from training.nano.sources import Source, provenance, sources

if TYPE_CHECKING:
    from sglang_longcat.testing.tiny import TinyOptions

Array = NDArray[np.generic]
VOCAB = 4096
_TOKENIZER_BYTES = 24_000_000  # of the training text: enough for 4K merges, in half the time
_SEED = 0


def prepare(out: Path) -> None:
    """Write the data folder `out`."""
    from tokenizers import Tokenizer

    from sglang_longcat.testing.tiny import tiny_config
    from sglang_longcat.testing.tokenizer import build_vocabulary, write_tokenizer

    out.mkdir(parents=True, exist_ok=True)
    _write(out / "config.json", tiny_config(_sizes()))
    files = sources()
    parts = {
        "train": [file for file in files if not file.held_out],
        "held_out": [file for file in files if file.held_out],
    }
    print(f"{len(files)} files; training the tokenizer", flush=True)
    write_tokenizer(out, build_vocabulary(VOCAB, _sample(parts["train"])))
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    arrays: dict[str, Any] = {}
    account: dict[str, Any] = {}
    for name, part in parts.items():
        documents = _documents(part)
        ids = _encode(tokenizer, documents)
        arrays[name] = np.concatenate(ids)
        arrays[f"{name}_starts"] = np.cumsum([0, *map(len, ids)])[:-1].astype(np.int64)
        account[name] = {"documents": len(documents), "tokens": len(arrays[name])}
        print(name, account[name], flush=True)
    np.savez_compressed(out / "tokens.npz", **arrays)
    account["held_out_paths"] = [file.path for file in parts["held_out"]]
    _write(out / "data.json", account | {"vocabulary": VOCAB, "sources": provenance(files)})


def load(data: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of tokens.npz and the account of data.json."""
    with np.load(data / "tokens.npz") as arrays:
        return dict(arrays), json.loads((data / "data.json").read_text())


def _sizes() -> TinyOptions:
    """14.5 M parameters, 29 MB in bf16. GPU attention kernels need these head sizes."""
    from sglang_longcat.testing.tiny import TinyOptions

    return TinyOptions(
        layers=3,
        hidden=288,  # 12 n-gram tables of width 24
        heads=2,
        q_lora=96,
        ffn=512,
        expert_ffn=64,
        experts=8,
        zero_experts=4,
        topk=3,
        vocab=VOCAB,
        ratio=2,
        max_position=4096,  # eight times the training window, by YaRN
    )


def _sample(files: list[Source]) -> Iterable[str]:
    shuffled = random.Random(_SEED).sample(files, len(files))
    total = 0
    for file in shuffled:
        if total > _TOKENIZER_BYTES:
            return
        total += len(file.text)
        yield file.text


def _documents(files: list[Source]) -> list[str]:
    """Files and conversations, shuffled, each with its EOS."""
    from sglang_longcat.testing.tokenizer import EOS

    texts = [file.text + EOS for file in files]
    texts += ["".join(map(_turn, turns)) for file in files for turns in conversations(file.text)]
    random.Random(_SEED).shuffle(texts)
    return texts


def _turn(turn: Turn) -> str:
    """One turn, as chat_template.jinja writes it."""
    question, answer = turn
    return f"<longcat_user>{question}<longcat_assistant>{answer}</longcat_s>"


def _encode(tokenizer: Any, texts: list[str]) -> list[Array]:
    return [
        np.array(encoding.ids, dtype=np.uint16)
        for start in range(0, len(texts), 1024)
        for encoding in tokenizer.encode_batch_fast(texts[start : start + 1024])
    ]


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
