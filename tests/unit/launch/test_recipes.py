"""Every recipe is a command that SGLang parses and that our model does not refuse."""

import argparse
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import sglang_longcat
from launch import serve
from sglang_longcat import env, tool_parser
from sglang_longcat.host import contract
from sglang_longcat.host.refused_flags import unsupported_flags
from tests import ROOT

DIRECTORY = ROOT / "launch" / "recipes"
RECIPES = sorted(DIRECTORY.glob("*.yaml"))
ENVIRONMENTS = sorted(DIRECTORY.glob("*.env"))
each = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def parse():
    """parse(recipe): (SGLang's parser, the words it was given, what it made of them)."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    tool_parser.register()
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    ServerArgs.add_cli_args(parser)

    def run(recipe, *flags):
        command = ["--config", str(recipe), "--model-path", "anything", *flags]
        argv = ConfigArgumentMerger(parser).merge_config_with_args(command)
        return parser, argv, parser.parse_known_args(argv)

    return run


@each
def test_sglang_accepts_every_flag(recipe, parse):
    """A flag that the pinned SGLang lacks, has renamed or reads differently."""
    parser, argv, (_, unknown) = parse(recipe)
    assert unknown == []
    used = [parser._option_string_actions[word] for word in argv if word.startswith("--")]
    assert [a.option_strings for a in used if "deprecated" in (a.help or "").lower()] == []


@each
def test_our_model_accepts_every_flag(recipe, parse):
    from sglang.srt.server_args import ServerArgs

    _, _, (parsed, _) = parse(recipe)
    assert unsupported_flags(ServerArgs.from_cli_args(parsed)) == []


@each
def test_name_says_what_the_recipe_does(recipe):
    """<gpu>-<parallelism>-<goal>; the sizes in it are the flags'."""
    if recipe.stem.endswith(("-tiny", "-nano")):
        return
    flags = yaml.safe_load(recipe.read_text())
    _, tp, rest = recipe.stem.split("-", 2)
    assert tp == f"tp{flags.get('tp-size', 1)}"
    if flags.get("ep-size", 1) > 1:
        assert rest.startswith(f"ep{flags['ep-size']}")
    assert ("fp8" in rest) == flags["model-path"].endswith("-FP8")
    assert ("two-nodes" in rest) == (flags.get("nnodes") == 2)


@pytest.mark.parametrize("file", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_files(file, monkeypatch):
    """Beside a recipe, only switches of ours, with values they take."""
    assert file.with_suffix(".yaml") in RECIPES
    switches = serve.recipe_env(file.with_suffix(".yaml"))
    assert switches
    for name, value in switches.items():
        assert f"{name}=" in Path(env.__file__).read_text()
        monkeypatch.setenv(name, value)
    env.ngram_tables()
    env.ngram_table_dtype()


def sh(*words, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LONGCAT_")}
    return subprocess.run(
        [str(ROOT / "launch" / "serve.sh"), *words],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_script_prints_the_command():
    """With the recipe's variables, which a setting of the caller overrides."""
    recipe = DIRECTORY / "h200-tp1-throughput.yaml"
    command = f"python -m sglang.launch_server --config {recipe} --port 31000 \n"
    done = sh("-n", "h200-tp1-throughput", "--port", "31000")
    assert done.stdout == f"export LONGCAT_NGRAM_TABLES=host\n{command}"
    done = sh("-n", str(recipe), "--port", "31000", LONGCAT_NGRAM_TABLES="auto")
    assert done.stdout == f"export LONGCAT_NGRAM_TABLES=auto\n{command}"


def test_script_runs_the_command(tmp_path):
    """The interpreter gets the words and the variables."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$LONGCAT_NGRAM_TABLES|$*"\n')
    fake.chmod(0o755)
    done = sh("h100-tp1-fp8", "--port", "1 2", PYTHON=str(fake))
    assert done.stdout.splitlines()[-1] == (
        f"host|-m sglang.launch_server --config {DIRECTORY}/h100-tp1-fp8.yaml --port 1 2"
    )


@pytest.mark.parametrize("words", [(), ("-n",), ("nope",)])
def test_script_names_the_recipes(words):
    done = sh(*words)
    assert done.returncode == 2
    assert "nope" in done.stderr or "h200-tp1-balanced" in done.stderr


def test_kubernetes_example(parse):
    """Both pods name a recipe and flags that SGLang parses, and the image of this version."""
    files = list(yaml.safe_load_all((ROOT / "launch/kubernetes/two-nodes.yaml").read_text()))
    group = files[0]["spec"]["leaderWorkerTemplate"]
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        [container] = template["spec"]["containers"]
        name, *flags = container["args"]
        given = [flag.replace("$(NODE_RANK)", "1") for flag in flags]
        _, _, (parsed, unknown) = parse(DIRECTORY / f"{name}.yaml", *given)
        assert unknown == []
        assert (parsed.nnodes, parsed.node_rank) == (group["size"], 1)
        assert container["image"].endswith(f":{sglang_longcat.__version__}")
        assert {variable["name"] for variable in container["env"]} == {"NODE_RANK"}


def test_dockerfile_uses_the_pinned_sglang():
    text = (ROOT / "launch/docker/Dockerfile").read_text()
    assert re.findall("^FROM .*:v(.*)$", text, flags=re.MULTILINE) == [
        contract.SUPPORTED.removeprefix("==")
    ]


def test_readme_lists_every_recipe():
    """In one of the two places."""
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "recipes.md").read_text()
    named = set(re.findall(r"`(?:launch/recipes/)?([a-z0-9-]+)(?:\.yaml)?`", text))
    assert {path.stem for path in RECIPES} <= named
