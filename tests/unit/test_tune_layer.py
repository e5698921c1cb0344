"""The search over a layer's tiles on invented times, and what is written of it; no GPU."""

import json
import math
from types import SimpleNamespace

import pytest
from tune_small_linear import candidates, write

from layer_check import checked
from layer_search import LAYER, Measured, Search
from layer_space import (
    ATTENTION,
    CONFIGS,
    EXPERTS,
    PROJECTIONS,
    SIZES,
    TILES,
    Axis,
    axes,
    text,
)
from layer_tables import COLUMNS, csv_rows, shipped, with_configs, with_tiles
from longcat_kernels.mla_decode import FEW
from longcat_kernels.small_linear import configs
from longcat_kernels.small_linear.configs import find
from longcat_kernels.small_linear.workloads import LITE
from tune_experts import ALIKE
from tune_layer import SHIPPED, main

UP, DOWN = (f"E=256,N=1024,device_name=NVIDIA_H200{end}.json" for end in ("", "_down"))
TABLES = {
    axis: json.loads((SHIPPED / name).read_text())
    for axis, name in zip(EXPERTS, (UP, DOWN), strict=True)
}
START = {
    **dict.fromkeys(EXPERTS, TILES[0]),
    **dict.fromkeys(PROJECTIONS),
    ATTENTION: "flashinfer",
}
OTHER = TILES[-1], TILES[-2]


def search(measure, budget=math.inf, **choices):
    """Of 8 requests, from START with `choices`; `budget` measurements are in time."""
    done = []

    def count(choices, careful):
        done.append(choices)
        return measure(choices)

    one = Search(
        start={**START, **choices},
        axes=axes(SIZES["8x1"]),
        measure=count,
        in_time=lambda: len(done) < budget,
    )
    return one, one.run()


def test_finds_a_planted_optimum_that_needs_the_second_sweep():
    """The up tile pays only once the down tile has changed, which comes after it."""
    up, down, o = *OTHER, CONFIGS["o"][-1]

    def measure(choices):
        us = 100.0
        us -= 10 if choices["expert_down"] == down else 0
        us -= 10 if (choices["expert_up"], choices["expert_down"]) == (up, down) else 0
        return us - (5 if choices["o"] == o else 0)

    one, found = search(measure)
    assert found == {**START, "expert_up": up, "expert_down": down, "o": o}
    assert [(m.axis, m.choice, m.us) for m in one.measured[-2:]] == [
        (LAYER, "shipped", 100),
        (LAYER, "tuned", 75),
    ]


@pytest.mark.parametrize(("us", "taken"), [(99.8, False), (99.0, True)])
def test_a_choice_changes_for_more_than_three_permille(us, taken):
    def measure(choices):
        return us if choices["expert_up"] == OTHER[0] else 100

    assert (search(measure)[1]["expert_up"] == OTHER[0]) is taken


def test_a_lucky_measurement_is_not_taken():
    """The second one, careful, decides."""
    seen = []

    def measure(choices):
        lucky = choices["o"] == CONFIGS["o"][0] and choices not in seen
        seen.append(choices)
        return 90 if lucky else 100

    assert search(measure)[1] == START


@pytest.mark.parametrize("error", [None, RuntimeError("CUDA error: out of resources\nand more")])
def test_what_cannot_run_is_not_chosen(error):
    best = CONFIGS["o"][-1]

    def measure(choices):
        if choices["expert_up"] != TILES[0]:
            if error:
                raise error
            return math.inf
        return 90 if choices["o"] == best else 100

    one, found = search(measure)
    assert found == {**START, "o": best}
    tiles = [m for m in one.measured if m.axis == "expert_up" and m.choice != TILES[0]]
    assert {m.us for m in tiles} == {math.inf}


def test_when_the_time_is_up_the_best_so_far_is_taken():
    """The first axis is done, the others are not."""

    def measure(choices):
        return 100 - 10 * (choices["expert_up"] == OTHER[0]) - 10 * (choices["o"] is None)

    o = CONFIGS["o"][0]
    assert search(measure, budget=0, o=o)[1] == {**START, "o": o}
    found = search(measure, budget=len(TILES) + 1, o=o)[1]
    assert found == {**START, "expert_up": OTHER[0], "o": o}


def test_attention_is_measured_but_not_taken():
    one, found = search(lambda choices: 50 if choices[ATTENTION] == "fa3" else 100)
    assert found == START
    assert {m.choice: m.us for m in one.measured if m.axis == ATTENTION} == {
        "flashinfer": 100,
        "split": 100,
        "fa3": 50,
    }


def test_only_choices_that_the_engine_asks_for_are_taken():
    """One token has another program; more than 32 are the library's; attention is not a table's."""
    taken = {name: {a.name for a in axes(size) if a.taken} for name, size in SIZES.items()}
    assert taken["1x1"] == taken["64x1"] == set(EXPERTS)
    for name in ("1x4", "8x1", "16x1", "30x1"):
        assert taken[name] == {*EXPERTS, *PROJECTIONS}


def test_tiles_that_do_not_compile_are_left_out():
    up, down, *_ = axes(SIZES["8x1"], lambda variant: variant.op == "up")
    assert (up.choices, down) == (TILES, Axis("expert_down", ()))


@pytest.mark.parametrize("name", CONFIGS)
def test_candidates_are_ones_that_fit(name):
    """Red for a candidate that spills registers or leaves no room for a second program."""
    shape = PROJECTIONS[name]
    assert set(CONFIGS[name]) <= set(candidates(shape.op, shape.columns, 10**6))
    assert len(set(CONFIGS[name])) == len(CONFIGS[name])
    assert len(set(TILES)) == len(TILES)


@pytest.mark.parametrize("name", SIZES)
def test_starts_from_what_is_shipped(name):
    size = SIZES[name]
    choices = shipped(size, TABLES, "flashinfer")
    nearest = {"1x1": "1", "1x4": "4", "8x1": "8", "16x1": "16", "30x1": "32", "64x1": "64"}[name]
    for axis, table in TABLES.items():
        assert choices[axis].config() == table[nearest]
    for projection, shape in PROJECTIONS.items():
        config = find(shape.op, shape.rows, shape.columns, size.tokens)
        assert choices[projection] == config
    assert choices[ATTENTION] == ("split" if size.requests <= FEW else "flashinfer")


def test_tiles_that_no_candidate_can_replace_are_refused():
    down = {"8": {**TABLES["expert_down"]["8"], "USE_TMA": True}}
    with pytest.raises(ValueError, match="tune_experts"):
        shipped(SIZES["8x1"], {**TABLES, "expert_down": down}, "fa3")


def test_sizes_write_every_entry_of_few_tokens_once():
    """Red for a batch size that neither table would be tuned for."""
    experts = [key for size in SIZES.values() for key in size.experts]
    projections = [key for size in SIZES.values() for key in size.projections]
    assert sorted(experts) == [int(key) for key in TABLES["expert_up"] if int(key) <= 64]
    assert sorted(projections) == [tokens for tokens in configs.TOKENS if tokens > 1]


def test_other_tiles_stay():
    old = TABLES["expert_down"]
    new = with_tiles(old, "expert_down", {SIZES["30x1"]: {**START, "expert_down": OTHER[0]}})
    assert new == {**old, **dict.fromkeys(("24", "32"), OTHER[0].config())}
    assert list(new) == list(old)


def test_other_projections_and_tokens_stay(tmp_path):
    """In the file that the kernels read. One token's projections are not this tool's."""
    config = CONFIGS["gate_up"][0]
    four = {**START, "gate_up": config}
    found = {SIZES["1x4"]: four, SIZES["1x1"]: {**START, "gate_up": config}}
    old = json.loads(configs.TABLE.read_text())
    write(tmp_path / "configs.json", with_configs(old, found))
    for shape in PROJECTIONS.values():
        value = list(config) if shape.name == "gate_up" else None
        old[configs.shape_key(shape.op, shape.rows, shape.columns)] |= {"2": value, "4": value}
    assert json.loads((tmp_path / "configs.json").read_text()) == old


def test_a_new_projection_is_the_librarys_elsewhere():
    config = CONFIGS["qkv_a"][0]
    tuned = with_configs({}, {SIZES["30x1"]: {**START, "qkv_a": config}})
    entries = dict.fromkeys(map(str, configs.TOKENS))
    assert tuned["linear 2112x3072"] == {**entries, "32": config}


@pytest.mark.parametrize("distance", [math.nan, 2 * ALIKE, ALIKE / 2])
def test_what_computes_something_else_is_put_back(distance):
    """Tiles go in pairs; a projection by itself."""
    wrong, right = CONFIGS["down"][0], CONFIGS["q_b"][0]
    found = {**START, "expert_up": OTHER[0], "down": wrong, "q_b": right}
    bench = SimpleNamespace(differs=lambda *pairs: distance)
    kept = checked(SIZES["8x1"], found, START, bench, lambda shape, tokens, config: config != wrong)
    tile = OTHER[0] if distance <= ALIKE else TILES[0]
    assert kept == {**START, "expert_up": tile, "q_b": right}


def test_rows_of_the_csv():
    measured = [
        Measured(1, "expert_up", TILES[0], 447.123),
        Measured(1, "o", None, 444.4),
        Measured(2, "o", CONFIGS["o"][0], math.inf),
        Measured(2, LAYER, "tuned", 426.3),
    ]
    rows = csv_rows("8x1", measured, gpu="NVIDIA H200", commit="cf03278")
    assert [tuple(row) for row in rows] == [COLUMNS] * 4
    assert [(row["sweep"], row["axis"], row["choice"], row["us"]) for row in rows] == [
        (1, "expert_up", "16x64x128 g1 w4 s3", "447.1"),
        (1, "o", "library", "444.4"),
        (2, "o", "mma-16-256-0-6-2", "inf"),
        (2, "layer", "tuned", "426.3"),
    ]


def test_texts_tell_choices_apart():
    for axis in axes(SIZES["30x1"]):
        assert len({text(choice) for choice in axis.choices}) == len(axis.choices)


def test_the_projections_are_the_kernels():
    """Red if a projection is renamed, or another one added that nobody tunes here."""
    assert set(PROJECTIONS) == set(CONFIGS) == {shape.name for shape in LITE}


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--sizes", "8x1"])
    assert "no CUDA GPU" in capsys.readouterr().err
