"""Every recipe is a command that SGLang parses and that our model does not refuse."""

import os
import re
import sys
from pathlib import Path
from subprocess import check_output

import pytest

from sglang_longcat import env, recipes
from sglang_longcat.host.refused_flags import unsupported_flags
from sglang_longcat.planning import sizing
from sglang_longcat.recipes import DIRECTORY, GOALS
from tests import ROOT

FILES = sorted(DIRECTORY.glob("*.yaml"))
ENVIRONMENTS = sorted(DIRECTORY.glob("*.env"))
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
each = pytest.mark.parametrize("recipe", recipes.every(), ids=lambda recipe: recipe.name)


@each
def test_sglang_accepts_every_flag(recipe, parse):
    """A flag that the pinned SGLang lacks, has renamed or reads differently."""
    parser, argv, (_, unknown) = parse(recipe.file)
    assert unknown == []
    used = [parser._option_string_actions[word] for word in argv if word.startswith("--")]
    assert [a.option_strings for a in used if "deprecated" in (a.help or "").lower()] == []
    # The choice compares a recipe's flags with the user's by SGLang's names.
    assert recipe.flags.keys() <= {action.dest for action in used}


@each
def test_our_model_accepts_every_flag(recipe, parse):
    from sglang.srt.server_args import ServerArgs

    _, _, (parsed, _) = parse(recipe.file)
    assert unsupported_flags(ServerArgs.from_cli_args(parsed)) == []


@each
def test_name_says_what_the_recipe_does(recipe):
    """<gpu>-<parallelism>-<goal>, or the GPU's memory instead; the sizes in it are the flags'."""
    if recipe.suits.model != "lite":
        return
    gpu, tp, rest = recipe.name.split("-", 2)
    size = re.fullmatch(r"(\d+)gb", gpu)
    if size:
        assert recipe.suits.gpu_memory <= int(size[1])
    else:
        assert gpu.upper() == recipe.suits.gpu[0]
    assert tp == f"tp{recipe.flags.get('tp_size', 1)}"
    if recipe.flags.get("ep_size", 1) > 1:
        assert rest.startswith(f"ep{recipe.flags['ep_size']}")
    assert ("fp8" in rest) == recipe.model_path.endswith("-FP8")
    assert ("int4" in rest) == ("-int4-" in recipe.model_path)
    assert ("two-nodes" in rest) == (recipe.flags.get("nnodes") == 2)
    assert [goal for goal in GOALS if goal in rest] in ([], [recipe.suits.goal[0]])


def test_catalogue_has_every_file():
    """A recipe that nobody can choose, and an entry without a file."""
    assert {recipe.file for recipe in recipes.every()} == set(FILES)


@each
def test_catalogue_says_what_the_flags_say(recipe):
    """An entry that was copied from another recipe."""
    suits = recipe.suits
    assert set(suits.goal) <= set(GOALS)
    assert suits.goal
    assert set(suits.checkpoint) <= set(sizing.FORMATS)
    assert suits.model in ("lite", "nano", "tiny")
    assert (suits.gpus == 0) == recipe.on_cpu
    if not recipe.on_cpu:
        ranks = recipe.flags.get("tp_size", 1) // recipe.flags.get("nnodes", 1)
        assert suits.gpus == ranks
    if suits.model == "lite":
        endings = {"-FP8": "block-fp8", "-int4-AutoRound": "int4"}
        found = [name for ending, name in endings.items() if recipe.model_path.endswith(ending)]
        assert suits.checkpoint == tuple(found or ["bf16"])


@pytest.mark.parametrize("file", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_files(file, monkeypatch):
    """Beside a recipe, only switches of ours, with values they take, and PyTorch's allocator."""
    switches = dict(recipes.find(file.stem).switches)
    assert switches
    switches.pop(ALLOCATOR, None)
    for name, value in switches.items():
        assert f"{name}=" in Path(env.__file__).read_text()
        monkeypatch.setenv(name, value)
    env.ngram_tables()
    env.ngram_table_dtype()


def test_segments_that_grow_are_for_one_gpu():
    """Red if the variable reaches a recipe of several ranks, whose all-reduce shares memory between
    processes, or one with a memory saver, which refuses it; or if PyTorch does not read it."""
    using = [recipe for recipe in recipes.every() if ALLOCATOR in recipe.switches]
    assert [recipe.name for recipe in using] == ["24gb-tp1-int4"]
    for recipe in using:
        assert recipe.flags.get("tp_size", 1) == 1
        assert "enable_memory_saver" not in recipe.flags
        script = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
        value = recipe.switches[ALLOCATOR]
        command = [sys.executable, "-W", "error", "-c", script]
        assert check_output(command, env=os.environ | {ALLOCATOR: value}, text=True) == value + "\n"


def test_find():
    """A name with and without its ending, a file, and neither."""
    known = recipes.find("h100-tp1-balanced.yaml")
    assert known is recipes.find("h100-tp1-balanced")
    assert recipes.find(str(known.file)).flags == known.flags
    with pytest.raises(recipes.UnknownRecipe, match=r"'h100'; expected .* h100-tp1-balanced"):
        recipes.find("h100")


def test_file_without_flags(tmp_path):
    file = tmp_path / "list.yaml"
    file.write_text("- tp-size\n")
    with pytest.raises(ValueError, match="expected SGLang's flags"):
        recipes.find(str(file))


def test_table_has_every_recipe_and_what_is_measured():
    """docs/recipes.md says "no" where the catalogue says nothing, and only there."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    table = re.search(r"^\| recipe \|.*?\n\n", text, flags=re.DOTALL | re.MULTILINE)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    said = {name: row[-1] for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row[0])}
    assert {recipe.name for recipe in recipes.every()} == said.keys()
    for recipe in recipes.every():
        assert bool(recipe.suits.measured) == (said[recipe.name] != "no"), recipe.name
