"""The script that starts a recipe, and the examples for containers and clusters."""

import os
import re
import subprocess
import sys

import pytest
import yaml

import sglang_longcat
from sglang_longcat import recipes
from sglang_longcat.host import contract
from tests import ROOT


def sh(*words, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LONGCAT_")}
    return subprocess.run(
        [str(ROOT / "launch" / "serve.sh"), *words],
        env={**environment, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_script_prints_the_command():
    """With the recipe's variables, which a setting of the caller overrides."""
    file = recipes.DIRECTORY / "h200-tp1-throughput.yaml"
    command = f"{sys.executable} -m sglang.launch_server --config {file}\n"
    done = sh("-n", "h200-tp1-throughput")
    assert done.stdout == f"export LONGCAT_NGRAM_TABLES=host\n{command}"
    done = sh("-n", str(file), LONGCAT_NGRAM_TABLES="auto")
    assert done.stdout == f"export LONGCAT_NGRAM_TABLES=auto\n{command}"


def test_script_hands_every_word_on(tmp_path):
    """The interpreter gets the recipe, then the flags, as they were typed."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    fake.chmod(0o755)
    done = sh("h100-tp1-fp8", "--port", "1 2", PYTHON=str(fake))
    assert done.stdout == "-m|sglang_longcat|serve|h100-tp1-fp8|--port|1 2|"


@pytest.mark.parametrize("words", [(), ("-n",), ("nope",)])
def test_script_refuses(words):
    done = sh(*words)
    assert done.returncode == 2
    assert "nope" in done.stderr or "RECIPE" in done.stderr


def test_kubernetes_example(parse):
    """Both pods name a recipe and flags that SGLang parses, and the image of this version."""
    files = list(yaml.safe_load_all((ROOT / "launch/kubernetes/two-nodes.yaml").read_text()))
    group = files[0]["spec"]["leaderWorkerTemplate"]
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        [container] = template["spec"]["containers"]
        name, *flags = container["args"]
        given = [flag.replace("$(NODE_RANK)", "1") for flag in flags]
        _, _, (parsed, unknown) = parse(recipes.find(name).file, *given)
        assert unknown == []
        assert (parsed.nnodes, parsed.node_rank) == (group["size"], 1)
        assert container["image"].endswith(f":{sglang_longcat.__version__}")
        assert {variable["name"] for variable in container["env"]} == {"NODE_RANK"}


def test_dockerfile_uses_the_pinned_sglang():
    text = (ROOT / "launch/docker/Dockerfile").read_text()
    assert re.findall("^FROM .*:v(.*)$", text, flags=re.MULTILINE) == [
        contract.SUPPORTED.removeprefix("==")
    ]
