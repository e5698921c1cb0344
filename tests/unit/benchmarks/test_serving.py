"""`benchmarks/serving`: what its arms start, what it reads off a log, what it keeps and shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from benchmarks.serving import log, model, report, run, server
from benchmarks.serving.arms import ARMS
from launch import serve

LATENCY, THROUGHPUT = "h200-tp1-fp8-latency", "h200-tp1-fp8-throughput"
SIZES = {"input": 4096, "output": 1024}
ROW = {name: 1.0 for name, _ in report.COLUMNS.values()}


def recipe(name: str) -> tuple[Path, dict[str, Any]]:
    path = serve.recipe_path(name)
    return path, yaml.safe_load(path.read_text())


def test_arms_change_what_they_say_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if ours loses a flag, an arm without drafts keeps one of theirs, or in-tree gets the
    plugin's parser, or less memory than it can use."""
    monkeypatch.delenv("LONGCAT_NGRAM_TABLES", raising=False)
    path, flags = recipe(THROUGHPUT)
    ours, plain, in_tree = (ARMS[arm].flags(flags) for arm in ("ours", "no-drafts", "in-tree"))
    assert ours == {name: value for name, value in flags.items() if name != "model-path"}
    drafts = {name for name in flags if name.startswith("speculative-")}
    assert len(drafts) == 4
    assert set(ours) - set(plain) == drafts
    assert set(plain) - set(in_tree) == {"tool-call-parser"}
    assert in_tree["mem-fraction-static"] == 0.95
    environment = ARMS["ours"].environment(path, ours)
    assert environment["LONGCAT_NGRAM_TABLES"] == "host"
    assert environment["SGLANG_SIMULATE_ACC_LEN"] == "3.15"
    environment = ARMS["in-tree"].environment(path, in_tree)
    assert environment["LONGCAT_DISABLE"] == "1"
    assert "SGLANG_SIMULATE_ACC_LEN" not in environment


def test_an_fp8_recipe_gets_an_fp8_config() -> None:
    """Red if the FP8 recipes are measured in bf16."""
    _, flags = recipe(LATENCY)
    config = model.model_config(flags["model-path"])
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    assert config["vocab_size"] == 131_072
    assert "quantization_config" not in model.model_config("meituan-longcat/LongCat-Flash-Lite")


def test_every_token_is_a_word_of_its_own(tmp_path: Path) -> None:
    """Red if a token has no text, which SGLang's benchmark would not count, or text of two."""
    model.write_model(tmp_path, checkpoint=None, in_tree=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokens = list(range(2048))
    assert tokenizer.vocab_size == len(tokens)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(text) == 4 * 2048 - 1
    assert tokenizer.encode(text, add_special_tokens=False) == tokens


def decode_line(running: int, rate: float) -> str:
    return (
        f"[2026-01-01 00:00:00] Decode batch, #running-req: {running}, #token: 9, token usage: "
        f"0.01, accept len: 3.15, cuda graph: True, gen throughput (token/s): {rate}, #queue-req: 0"
    )


def test_the_steady_rate_is_that_of_the_middle() -> None:
    """Red if start and end of a run count, when fewer requests run or a prompt is processed."""
    rates = [(8, 10.0), (64, 20.0), (64, 900.0), (63, 1000.0), (64, 1100.0), (64, 30.0), (3, 5.0)]
    text = "\n".join(decode_line(*each) for each in rates)
    assert log.steady_rate(text) == 1000.0
    assert log.steady_rate("no figure") is None


def test_a_server_of_another_class_is_refused() -> None:
    """Red if in-tree's speed could be written down as ours, or a server's without the line."""
    said = f"dummy routing: 14 routers of {ARMS['in-tree'].module}.LongcatFlashForCausalLM\n"
    assert server.require_class(said, ARMS["in-tree"].module)
    for text in (said, ""):
        with pytest.raises(server.WrongServerError, match="nothing is measured"):
            server.require_class(text, ARMS["ours"].module)


def test_loads() -> None:
    """Red if the numbers of a list are read the wrong way round."""
    loads = run.parse_loads("1,64,200@400", input=8, output=4)
    assert [(load.users, load.prompts) for load in loads] == [(1, 8), (64, 256), (200, 400)]


def add_arm(path: Path, arm: str, *, rows: int = 1, sizes: dict[str, int] = SIZES) -> None:
    written = report.Report(path, recipe=LATENCY, command="command", sizes=sizes)
    written.begin(arm, {"class": ["module.Name"]})
    for _ in range(rows):
        written.add(ROW)


def test_a_report_grows_by_run_and_by_arm(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Red if a later call loses an arm of an earlier one, doubles its own, or mixes sizes; or if a
    run is in the file only at the end."""
    path = tmp_path / "latency.json"
    add_arm(path, "in-tree", rows=2)
    add_arm(path, "ours", rows=2)
    add_arm(path, "ours", rows=1)
    results = json.loads(path.read_text())["results"]
    assert {arm: len(result["runs"]) for arm, result in results.items()} == {
        "in-tree": 2,
        "ours": 1,
    }
    with pytest.raises(SystemExit, match="Write to another file"):
        add_arm(path, "ours", sizes={"input": 8, "output": 4})
    out = capsys.readouterr().out
    assert out.count("| in-tree |") == 2
    assert {line.count("|") for line in out.splitlines()} == {len(report.COLUMNS) + 2}


def test_an_arm_without_a_run_does_not_replace_the_old_one(tmp_path: Path) -> None:
    """Red if a server that fails in its first run takes the earlier figures with it."""
    path = tmp_path / "latency.json"
    add_arm(path, "ours", rows=2)
    add_arm(path, "ours", rows=0)
    assert len(json.loads(path.read_text())["results"]["ours"]["runs"]) == 2
