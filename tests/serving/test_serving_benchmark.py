"""`python -m benchmarks.serving` starts a recipe, measures it over HTTP, and writes what it has."""

import json
import subprocess
import sys

import yaml

from sglang_longcat import recipes
from sglang_longcat.testing.engine_flags import nextn
from tests import ROOT, harness


def write_recipe(path):
    """cpu-tiny with drafts."""
    flags = yaml.safe_load(recipes.find("cpu-tiny").file.read_text())
    drafts = {name.replace("_", "-"): value for name, value in nextn(3).items()}
    path.write_text(yaml.safe_dump(flags | drafts))


def run_benchmark(module, recipe, out, words):
    """One of the commands that start a recipe's server, on a free port. Returns how it ended, and
    the end of what it said."""
    words = [*words, "--out", str(out), "--port", str(harness.free_port())]
    done = subprocess.run(
        [sys.executable, "-m", module, str(recipe), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done, (done.stdout + done.stderr)[-6000:]


def test_ours_is_measured_and_an_arm_that_cannot_start_is_named(tmp_path):
    """Red if a flag, log line or figure of SGLang has another name, if the draft's or target's
    class is not ours, if acceptance is not simulated, or if one arm's failure takes the others with
    it. In-tree cannot run on a CPU: its NgramEmbedding (srt/layers/n_gram_embedding.py) allocates
    on "cuda", whatever --device says. Of a GPU machine's in-tree this test says nothing."""
    recipe, out = tmp_path / "tiny-drafts.yaml", tmp_path / "out" / "tiny.json"
    write_recipe(recipe)
    words = ["--arms", "in-tree,ours", "--users", "1,2@4", "--input", "8", "--output", "4"]
    words += ["--decode-log-interval", "1"]
    done, said = run_benchmark("benchmarks.serving", recipe, out, words)
    assert done.returncode == 1, said
    assert "the last lines of " in done.stdout
    assert done.stdout.count("not measured: in-tree") + done.stderr.count("not measured") == 1
    whole = json.loads(out.read_text())
    assert (whole["recipe"], whole["input"], list(whole["results"])) == ("tiny-drafts", 8, ["ours"])
    ours = whole["results"]["ours"]
    assert [name.rpartition(".")[2] for name in ours["class"]] == [
        "LongcatFlashForCausalLM",
        "LongcatFlashForCausalLMNextN",
    ]
    assert [(row["users"], row["completed"]) for row in ours["runs"]] == [(1, 8), (2, 4)]
    for row in ours["runs"]:
        assert row["accept_length"] > 2
        assert min(row["tok_s"], row["tpot_ms"], row["ttft_ms"], row["steady_tok_s"]) > 0
    assert ours["kv_tokens"] == 4096
    assert "active: LongCat-Flash-Lite" in (tmp_path / "out" / "logs" / "ours.log").read_text()
