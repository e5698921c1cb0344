"""The search over tiles of the expert GEMM, on invented times, and its compiler without a GPU."""

import math

import pytest

from benchmarks.tune.experts.compile import compile_one, key_of
from benchmarks.tune.experts.launch import (
    SHAPES,
    align,
    launch,
    make_batch,
    make_layer,
    make_routing,
)
from benchmarks.tune.experts.search import Search
from benchmarks.tune.experts.space import SHARED_MEMORY, TOKENS, Tile, Variant, space, tile_of
from benchmarks.tune.experts.timing import reached

SMALL = Tile(m=16, n=32, k=64, group=1, warps=4, stages=3)
DEFAULT = Variant("up", SMALL), Variant("down", SMALL)


def search(measure, tokens=TOKENS, budget=math.inf, **options):
    """Everything compiles; `budget` measurements are in time."""
    done = []

    def count(*job):
        done.append(job)
        return measure(*job)

    tuning = Search(
        tokens=tokens,
        defaults=dict.fromkeys(tokens, DEFAULT),
        compile_all=set,
        measure=count,
        in_time=lambda: len(done) < budget,
        **options,
    )
    tuning.run()
    return tuning


def test_finds_the_fastest_pair_of_equal_rows():
    """The second GEMM alone would take 64 rows; together 16 are faster."""

    def measure(tokens, variant):
        tile, up = variant.tile, variant.op == "up"
        us = 100 + abs(tile.k - 128) + abs(tile.n - (64 if up else 128)) + 5 * tile.stages
        return us + (40 if up and tile.m > 16 else 0) - (20 if not up and tile.m > 16 else 0)

    up, down = search(measure, tokens=(64,)).best(64)
    assert (up.tile.m, up.tile.n, up.tile.k, up.tile.stages) == (16, 64, 128, 3)
    assert (down.tile.m, down.tile.n, down.tile.k) == (16, 128, 128)


def test_tokens_between_anchors_take_the_finalists_of_both():
    """At 256 tokens many rows win, which only the anchor above has among its best."""

    def measure(tokens, variant):
        return 100 + abs(variant.tile.m - {64: 16, 256: 32}.get(tokens, 32))

    tuning = search(measure, tokens=(256,))
    assert {variant.tile.m for variant in tuning.best(256)} == {32}
    assert len([job for job in tuning.times if job[0] == 256]) < 150


@pytest.mark.parametrize(("us", "chosen"), [(99, False), (90, True)])
def test_sorted_rows_have_to_pay(us, chosen):
    """The second GEMM reads by TMA only what the first one wrote for it, and only for 3 %."""

    def measure(tokens, variant):
        return us if variant.op == "down" and variant.tma else 100

    up, down = search(measure, tokens=(8,)).best(8)
    assert (up.by_expert, down.tma) == (chosen, chosen)


def test_when_the_time_is_up_the_best_so_far_is_taken():
    """SGLang's own choice comes first, so that there always is an answer."""
    assert search(lambda *job: 1.0, budget=0).best(8) == DEFAULT
    tuning = search(lambda tokens, variant: variant.tile.stages, budget=2 * len(TOKENS))
    assert all(tuning.best(tokens) == DEFAULT for tokens in TOKENS)


def test_what_cannot_run_is_not_chosen():
    tuning = search(lambda tokens, variant: math.inf if variant.tile != SMALL else 1, tokens=(8,))
    assert tuning.best(8) == DEFAULT


def test_configs_keep_their_sizes():
    assert tile_of(SMALL.config()) == SMALL
    assert tile_of({k: v for k, v in SMALL.config().items() if "num" not in k}) == SMALL


@pytest.mark.parametrize("anchor", [1, 64, 512, 8192])
def test_fp8_tiles_are_one_scale_block_deep(anchor):
    """SGLang's kernel reads one scale for each step along K."""
    assert {variant.tile.k for variant in space(anchor, fp8=True, tma=True)} == {128}


def test_the_compiler_tells_what_fits():
    large = Tile(m=16, n=128, k=256, group=1, warps=4, stages=5)
    assert compile_one(SHAPES["tp2"], False, 8, Variant("up", SMALL, tma=True))
    assert (large.m + large.n) * large.k * 2 * (large.stages - 1) > SHARED_MEMORY
    assert not compile_one(SHAPES["tp2"], False, 8, Variant("up", large))


@pytest.mark.parametrize("op", ["up", "down"])
def test_fp8_tiles_compile(op):
    """Red if the script launches block FP8 otherwise than SGLang's kernel takes it."""
    tile = Tile(m=16, n=128, k=128, group=1, warps=4, stages=3)
    assert compile_one(SHAPES["tp2"], True, 8, Variant(op, tile))


def test_launches_with_one_key_share_a_kernel(monkeypatch):
    """Red if SGLang or Triton tells more launches apart: they would compile while being timed."""
    from sglang.kernels.ops.moe import fused_moe_triton_kernels

    from longcat_kernels.compile_only import compile_only
    from longcat_kernels.warm_up import compilations

    monkeypatch.setattr(fused_moe_triton_kernels, "is_arch_support_pdl", lambda: True)
    shape, tile = SHAPES["ep2"], Tile(m=16, n=64, k=64, group=1, warps=4, stages=3)
    variants = [Variant("up", tile), Variant("down", tile), Variant("down", tile, tma=True)]
    with compile_only(arch=90), compilations() as compiled:
        layer = make_layer(shape, "cpu", fp8=False)
        for tokens in TOKENS:
            batch = make_batch(shape, tokens, "cpu", fp8=False)
            rows = align(shape, make_routing(shape, tokens, seed=0), tile.m)
            for variant in variants:
                launch(variant, layer, batch, rows)
    keys = {key_of(shape, tokens, variant) for tokens in TOKENS for variant in variants}
    assert len(compiled) == len(keys)


@pytest.mark.parametrize("name", ["ep4", "ep8"])
def test_outputs_are_compared_where_there_are_some(name):
    """Red if one token's routing is taken that reaches no expert of this GPU: the distance of two
    empty outputs is not a number, and the tiles that were measured would be refused."""
    shape = SHAPES[name]
    rows = [align(shape, make_routing(shape, 1, seed=seed), 16) for seed in range(10)]
    assert (rows[0].routing.ids < 0).all()
    assert (reached(rows).routing.ids >= 0).any()
