"""`sglang-longcat draft-vocabulary`, with LongCat-nano's tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from sglang.srt.speculative.spec_utils import load_token_map
from tokenizers import Tokenizer

from sglang_longcat.__main__ import main
from sglang_longcat.assets import nano
from sglang_longcat.speculation import draft_vocabulary

TEXT = "def total(numbers):\n    return sum(numbers)\n"


def test_the_file_is_what_sglang_reads(tmp_path: Path) -> None:
    """Red if the format differs from SGLang's, the texts' tokens are not in it, or the tokens that
    end an answer or open a tool call are left out because no text has them."""
    plain, lines, out = (tmp_path / name for name in ("a.py", "b.jsonl", "kept.pt"))
    plain.write_text(TEXT)
    lines.write_text(json.dumps({"content": "import numpy"}) + "\n")
    words = ["draft-vocabulary", str(nano()), str(plain), str(lines), "--field", "content"]
    assert main([*words, "--size", "128", "--out", str(out)]) == 0
    kept = load_token_map(str(out)).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == 128
    tokenizer = Tokenizer.from_file(str(nano() / "tokenizer.json"))
    for line in (*TEXT.splitlines(keepends=True), "import numpy"):
        assert set(tokenizer.encode(line, add_special_tokens=False).ids) <= set(kept)
    assert json.loads((nano() / "config.json").read_text())["eos_token_id"] in kept


def test_the_most_frequent_are_chosen() -> None:
    counts = Counter({7: 5, 3: 5, 4: 9, 1: 1})
    assert draft_vocabulary.choose(counts, size=4, vocabulary=10, always=[0]) == [0, 3, 4, 7]
    assert draft_vocabulary.choose(counts, size=6, vocabulary=10) == [0, 1, 2, 3, 4, 7]


@pytest.mark.parametrize("size", ["0", "5000"])
def test_a_size_that_cannot_be(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    words = ["draft-vocabulary", str(nano()), str(tmp_path / "a.txt"), "--out", "kept.pt"]
    assert main([*words, "--size", size]) == 2
    assert f"--size {size}: expected more than" in capsys.readouterr().err
