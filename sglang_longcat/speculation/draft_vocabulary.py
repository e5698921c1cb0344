"""`sglang-longcat draft-vocabulary`: the tokens worth drafting, for --speculative-token-map.

Owns: counting the tokens of texts and choosing from the counts. A draft step reads the head's row
of every token that it may draft, so fewer tokens make it faster. A token outside the list can still
be generated; it is only never drafted. SGLang reads the file (`load_token_map`).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sglang_longcat.config import LongcatConfig

_LINES = 1000  # per call of the tokenizer, which then uses all cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="directory with tokenizer and config.json")
    parser.add_argument("texts", type=Path, nargs="+", help="UTF-8 files; .jsonl: of --field")
    parser.add_argument("--size", type=int, required=True, help="tokens to keep, e.g. 32768")
    parser.add_argument("--out", type=Path, required=True, help="the .pt file to write")
    parser.add_argument("--field", default="text", help="of a .jsonl line (default: text)")


def run(args: argparse.Namespace) -> int:
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    vocabulary = LongcatConfig.from_dir(args.checkpoint).vocab_size
    counts = count(tokenizer, lines(args.texts, field=args.field))
    added = tokenizer.get_added_tokens_decoder().items()
    special = [token_id for token_id, token in added if token.special]
    kept = choose(counts, size=args.size, vocabulary=vocabulary, always=special)
    torch.save(kept, args.out)
    total = counts.total()
    covered = sum(counts[token] for token in kept) / total if total else 0.0
    print(f"{args.out}: {len(kept)} of {vocabulary} tokens, {covered:.2%} of {total} in the texts")
    return 0


def lines(paths: Sequence[Path], *, field: str) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                yield json.loads(line)[field] if path.suffix == ".jsonl" else line


def count(tokenizer: object, texts: Iterable[str]) -> Counter[int]:
    """How often each token id occurs in `texts`; tokenizer: a `tokenizers.Tokenizer`."""
    counts: Counter[int] = Counter()
    lines_to_count: list[str] = []
    for text in texts:
        lines_to_count.append(text)
        if len(lines_to_count) == _LINES:
            _add(counts, tokenizer, lines_to_count)
            lines_to_count = []
    _add(counts, tokenizer, lines_to_count)
    return counts


def _add(counts: Counter[int], tokenizer: object, texts: list[str]) -> None:
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)  # type: ignore[attr-defined]
    for encoding in encodings:
        counts.update(encoding.ids)


def choose(
    counts: Counter[int], *, size: int, vocabulary: int, always: Iterable[int] = ()
) -> list[int]:
    """`size` token ids, ascending: those of `always` (control tokens, which texts lack and with
    which answers end), then the most frequent ones, the lower id first among equals.

    Raises ValueError if size is not between their number and the vocabulary's.
    """
    first = sorted(set(always))
    if not len(first) < size <= vocabulary:
        raise ValueError(
            f"--size {size}: expected more than the {len(first)} control tokens and at most the "
            f"{vocabulary} of the vocabulary."
        )
    known = set(first)
    rest = (token for token in range(vocabulary) if token not in known)
    frequent = sorted(rest, key=lambda token: (-counts[token], token))
    return sorted([*first, *frequent[: size - len(first)]])
