"""Which recipe is chosen on which machine, and that it fits there."""

from dataclasses import replace
from functools import cache

import pytest

from sglang_longcat import recipes
from sglang_longcat.assets import NANO
from sglang_longcat.config import LongcatConfig, QuantConfig
from sglang_longcat.planning.plan import MachineMemory
from sglang_longcat.planning.roofline import GPUS
from sglang_longcat.planning.sizing import FORMATS, GIB
from sglang_longcat.recipes.choose import NoRecipe, best, choose, compare, published
from sglang_longcat.recipes.fit import check
from sglang_longcat.recipes.memory import Hardware, memory_plan
from sglang_longcat.testing.tiny import TinyOptions, tiny_config
from tests import ROOT

HOST = 512  # GiB
TINY = LongcatConfig.from_dict(tiny_config(TinyOptions()))
BALANCED, LATENCY, THROUGHPUT, LONG = GOALS = recipes.GOALS
NONE = (None,) * len(GOALS)
H20_96G = (*["h100-tp1-fp8"] * 2, *["h200-tp1-fp8-throughput"] * 2)
INT4 = ("48gb-tp1-int4",) * 4
FP8 = (*["h200-tp1-fp8-latency"] * 2, *["h200-tp1-fp8-throughput"] * 2)

# (GPU, how many): recipes for the goals, in their order, by the format of the checkpoint.
CHOSEN = {
    ("RTX-4090-24G", 1): {"bf16": NONE, "block-fp8": NONE, "int4": ("24gb-tp1-int4",) * 4},
    ("RTX-5090-32G", 1): {"bf16": NONE, "block-fp8": NONE, "int4": ("32gb-tp1-int4",) * 4},
    ("L40S-48G", 1): {"bf16": NONE, "block-fp8": NONE, "int4": INT4},
    ("A100-80G", 1): {"bf16": NONE, "block-fp8": NONE, "int4": INT4},
    ("A100-80G", 8): {"bf16": NONE, "block-fp8": NONE, "int4": INT4},
    ("H20-96G", 1): {"bf16": ("h200-tp1-throughput",) * 4, "block-fp8": H20_96G, "int4": INT4},
    ("H20-96G", 2): {
        "bf16": (*["h200-tp2-ep2"] * 3, "h200-tp1-throughput"),
        "block-fp8": H20_96G,
        "int4": INT4,
    },
    ("H20-96G", 8): {"bf16": ("h20-tp8-ep8-balanced",) * 4, "block-fp8": H20_96G, "int4": INT4},
    ("H20-141G", 1): {
        "bf16": ("h200-tp1-balanced", "h200-tp1-latency", *["h200-tp1-throughput"] * 2),
        "block-fp8": FP8,
        "int4": INT4,
    },
    ("H20-141G", 8): {
        "bf16": ("h20-tp8-ep8-balanced", "h200-tp1-latency", *["h20-tp8-ep8-balanced"] * 2),
        "block-fp8": FP8,
        "int4": INT4,
    },
    ("H800-80G", 1): {
        "bf16": ("h100-tp1-balanced",) * 4,
        "block-fp8": ("h100-tp1-fp8",) * 4,
        "int4": INT4,
    },
    ("H800-80G", 8): {
        "bf16": ("h800-tp8-ep8-throughput",) * 4,
        "block-fp8": ("h100-tp1-fp8",) * 4,
        "int4": INT4,
    },
    ("H100-80G", 1): {
        "bf16": ("h100-tp1-balanced",) * 4,
        "block-fp8": ("h100-tp1-fp8",) * 4,
        "int4": INT4,
    },
    ("H100-80G", 2): {
        "bf16": ("h100-tp2-ep2-balanced",) * 4,
        "block-fp8": ("h100-tp1-fp8",) * 4,
        "int4": INT4,
    },
    ("H100-80G", 8): {
        "bf16": ("h800-tp8-ep8-throughput",) * 4,
        "block-fp8": ("h100-tp1-fp8",) * 4,
        "int4": INT4,
    },
    ("H200", 1): {
        "bf16": ("h200-tp1-balanced", "h200-tp1-latency", *["h200-tp1-throughput"] * 2),
        "block-fp8": FP8,
        "int4": INT4,
    },
    ("H200", 2): {
        "bf16": ("h200-tp2-ep2", "h200-tp1-latency", "h200-tp2-ep2", "h200-tp2-ep2-256k"),
        "block-fp8": FP8,
        "int4": INT4,
    },
    ("H200", 8): {
        "bf16": ("h200-tp2-ep2", "h200-tp1-latency", "h200-tp2-ep2", "h200-tp2-ep2-256k"),
        "block-fp8": FP8,
        "int4": INT4,
    },
    ("B200", 1): {"bf16": ("b200-tp1-balanced",) * 4, "block-fp8": NONE, "int4": INT4},
    ("B300", 8): {"bf16": ("b200-tp1-balanced",) * 4, "block-fp8": NONE, "int4": INT4},
}
# Tokens of context that a recipe must leave, where the weights leave less than the usual 32,768.
SHORTEST = {"RTX-4090-24G": 16384}
CELLS = [
    pytest.param(gpu, gpus, weight_format, goal, recipe, id=f"{gpus}x{gpu}-{weight_format}-{goal}")
    for (gpu, gpus), formats in CHOSEN.items()
    for weight_format, names in formats.items()
    for goal, recipe in zip(GOALS, names, strict=True)
]


@cache
def lite(weight_format):
    return published(weight_format)


def machine(gpu, gpus=1, host=HOST, free=None):
    memory = MachineMemory.of_gpu(GPUS[gpu].memory, GPUS[gpu].shown)
    memory = replace(memory, gpu_free=memory.gpu_free if free is None else free * GIB)
    return Hardware(gpu, gpus, replace(memory, host=host * GIB))


@pytest.fixture(autouse=True)
def no_switches(monkeypatch):
    for name in ("LONGCAT_NGRAM_TABLES", "LONGCAT_NGRAM_TABLE_DTYPE"):
        monkeypatch.delenv(name, raising=False)


@cache
def compared(gpu, gpus, weight_format):
    return compare(machine(gpu, gpus), lite(weight_format), {})


@pytest.mark.parametrize(("gpu", "gpus", "weight_format", "goal", "recipe"), CELLS)
def test_choice(gpu, gpus, weight_format, goal, recipe):
    """Red if a new recipe takes a machine from another, or the one that is chosen does not fit."""
    fit = best(compared(gpu, gpus, weight_format), goal, {})
    assert (fit and fit.recipe.name) == recipe
    if fit:
        assert fit.gpus <= gpus
        assert fit.plan.kv_tokens >= fit.context >= SHORTEST.get(gpu, 32768)
        assert fit.plan.host_tables < HOST * GIB


def test_every_gpu_and_format_is_in_the_table():
    assert {gpu for gpu, _ in CHOSEN} == set(GPUS)
    assert all(tuple(formats) == FORMATS for formats in CHOSEN.values())


@pytest.mark.parametrize(
    "recipe", [r for r in recipes.every() if r.suits.gpus], ids=lambda recipe: recipe.name
)
def test_memory_in_the_catalogue_is_enough(recipe):
    """Red for an entry that promises a smaller GPU than the recipe's flags need."""
    memory = MachineMemory.of_gpu(recipe.suits.gpu_memory)
    here = Hardware("any", recipe.suits.gpus, replace(memory, host=HOST * GIB))
    config = lite(recipe.suits.checkpoint[0]) if recipe.suits.model == "lite" else TINY
    plan = memory_plan(recipe, here, config, {})
    assert plan.kv_tokens >= recipe.flags.get("context_length", 32768)


def why_not(here, config, given=None):
    with pytest.raises(NoRecipe) as error:
        choose(here, config, BALANCED, given or {})
    lines = dict(line.strip().split(": ", 1) for line in str(error.value).splitlines()[1:-1])
    return str(error.value), lines


def test_what_is_missing():
    """Per candidate, the closest first."""
    text, lines = why_not(machine("H100-80G", host=40), lite("bf16"))
    assert "no recipe fits 1 x H100-80G" in text
    assert next(iter(lines)).startswith("h100-")
    assert lines["h100-tp1-balanced"] == (
        "needs 61 GiB of host memory for the n-gram tables "
        "(33 with LONGCAT_NGRAM_TABLE_DTYPE=fp8), 40 are available"
    )
    assert lines["h100-tp2-ep2-balanced"] == "needs 2 GPUs, this machine has 1"
    assert "needs 139 GiB of GPU memory, this GPU has 78" in lines["h200-tp1-balanced"]
    assert "is for B200 or B300, this GPU is H100-80G" in lines["b200-tp1-balanced"]
    assert not {"h200-tp1-fp8-latency", "cpu-nano", "h200-tp1-decode"} & lines.keys()


@pytest.mark.parametrize(
    ("gpu", "host", "remedy"),
    [
        ("H100-80G", 40, "(33 with LONGCAT_NGRAM_TABLE_DTYPE=fp8), 40 are available"),
        ("L40S-48G", 20, "(17 with LONGCAT_NGRAM_TABLE_DTYPE=int4), 20 are available"),
        ("RTX-5090-32G", 10, "tables, 10 are available"),
    ],
)
def test_a_large_gpu_gets_no_recipe_for_a_small_one(gpu, host, remedy):
    """Red if little host memory leaves a large GPU with the four requests of 24gb-tp1-int4, or if
    nobody says which tables would fit."""
    with pytest.raises(NoRecipe) as error:
        choose(machine(gpu, host=host), None, BALANCED, {})
    assert remedy in str(error.value)


def test_a_large_gpu_with_little_free_memory_is_a_small_one():
    fit = choose(machine("H100-80G", free=25), lite("int4"), BALANCED, {})
    assert fit.recipe.name == "24gb-tp1-int4"


def test_memory_that_another_process_uses():
    """36 GiB of weights without the tables, 1 of the draft, 11 of reserve and 4 of KV cache."""
    _, lines = why_not(machine("H200", free=40), lite("block-fp8"))
    assert lines["h200-tp1-fp8-throughput"] == (
        "needs 52 GiB of free GPU memory for weights and one request of 131,072 tokens, "
        "this GPU has 40"
    )


def test_context_that_does_not_fit():
    """The user's own flags are part of the plan."""
    assert choose(machine("H100-80G"), lite("bf16"), BALANCED, {"context_length": 100_000})
    _, lines = why_not(machine("H100-80G"), lite("bf16"), {"context_length": 200_000})
    assert "one request of 200,000 tokens" in lines["h100-tp1-balanced"]


def test_switches_of_the_user_are_part_of_the_plan(monkeypatch):
    monkeypatch.setenv("LONGCAT_NGRAM_TABLE_DTYPE", "fp8")
    assert choose(machine("H100-80G", host=40), lite("bf16"), BALANCED, {})
    monkeypatch.setenv("LONGCAT_NGRAM_TABLES", "ssd")
    _, lines = why_not(machine("H100-80G"), lite("bf16"))
    assert "expected one of auto, device, host" in lines["h100-tp1-balanced"]


def test_the_type_of_the_kv_cache_is_part_of_the_plan():
    """Red if a context that fits in FP8 rows alone is refused, or one that needs them is not."""
    tokens = choose(machine("H100-80G"), lite("bf16"), BALANCED, {}).plan.kv_tokens
    given = {"context_length": tokens + 1000}
    _, lines = why_not(machine("H100-80G"), lite("bf16"), given)
    assert "one request of" in lines["h100-tp1-balanced"]
    fit = choose(
        machine("H100-80G"), lite("bf16"), BALANCED, {**given, "kv_cache_dtype": "fp8_e4m3"}
    )
    assert fit.plan.kv_tokens == pytest.approx(tokens * 1152 / 656, rel=0.01)


def test_flags_of_the_user_choose_the_recipe_that_has_them():
    """Two GPUs asked for by --tp-size: not a recipe for one, with its size replaced."""
    here = machine("H200", 8)
    fit = choose(here, lite("bf16"), LATENCY, {"tp_size": 1})
    assert (fit.recipe.name, fit.gpus) == ("h200-tp1-latency", 1)
    assert choose(here, lite("bf16"), BALANCED, {"tp_size": 1}).recipe.name == "h200-tp1-balanced"
    fit = choose(here, lite("bf16"), BALANCED, {"tp_size": 2, "dp_size": 4})
    assert (fit.recipe.name, fit.gpus) == ("h200-tp2-ep2", 8)


def test_replicas_have_their_own_tables():
    """Red if eight replicas are let share the host memory of one."""
    here, given = machine("H100-80G", 8, host=400), {"tp_size": 1, "dp_size": 8}
    assert choose(here, lite("bf16"), BALANCED, {**given, "dp_size": 6}).gpus == 6
    _, lines = why_not(here, lite("bf16"), given)
    assert lines["h100-tp1-balanced"].startswith("needs 491 GiB of host memory")


def test_without_a_checkpoint():
    """The published bf16 one; the FP8 one where only that fits."""
    assert choose(machine("H200"), None, BALANCED, {}).recipe.name == "h200-tp1-balanced"
    fit = choose(machine("H200", host=8, free=115), None, BALANCED, {})
    assert fit.recipe.name == "h200-tp1-fp8-latency"


def test_small_checkpoints():
    """Each by its own recipe, with and without a GPU."""
    nano = LongcatConfig.from_dir(NANO)
    without = Hardware("", 0, MachineMemory(0, 0, host=8 * GIB))
    for config, name in ((nano, "nano"), (TINY, "tiny")):
        assert choose(without, config, BALANCED, {}).recipe.name == f"cpu-{name}"
        assert choose(machine("H100-80G"), config, LONG, {}).recipe.name == f"gpu-{name}"
    for config in (None, lite("bf16")):
        with pytest.raises(NoRecipe, match="on a CPU only small checkpoints run"):
            choose(without, config, BALANCED, {})


def test_format_without_a_recipe():
    config = replace(lite("bf16"), quant=QuantConfig(method="awq", block=None, ignored=()))
    with pytest.raises(
        NoRecipe, match=r"no recipe is for awq checkpoints .* bf16, block-fp8, int4"
    ):
        choose(machine("H200"), config, BALANCED, {})


@pytest.mark.parametrize(
    ("recipe", "suits", "other"),
    [
        ("h20-tp8-ep8-balanced", "NVIDIA H20", "NVIDIA H200"),
        ("h200-tp1-balanced", "NVIDIA H200", "NVIDIA GH200 480GB"),
    ],
)
def test_family_is_a_word_of_the_name(recipe, suits, other):
    """H20 is not H200, whose names begin alike."""
    memory = MachineMemory(179 * GIB, 178 * GIB, host=HOST * GIB)
    for gpu, expected in ((suits, ()), (other, (f"this GPU is {other}",))):
        fit = check(recipes.find(recipe), Hardware(gpu, 8, memory), lite("bf16"), {})
        assert tuple(phrase.rpartition(", ")[2] for phrase in fit.missing) == expected


def test_catalogue_is_described():
    """A field that the file's own header does not explain."""
    text = (ROOT / "sglang_longcat/recipes/catalogue.toml").read_text()
    header = text.partition("\n\n")[0]
    fields = {name.replace("_", "-") for name in recipes.Suits.__dataclass_fields__}
    assert [field for field in fields if f"#   {field} " not in header] == []
