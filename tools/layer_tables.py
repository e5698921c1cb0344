"""The tables that tools/tune_layer.py starts from and writes to, and its CSV.

Tables in, tables out: owns which entry a size reads, and that no others change. Files are the
tool's business, their formats SGLang's (sglang_longcat/expert_configs) and small_linear's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from expert_space import Tile, tile_of
from layer_search import Measured
from layer_space import (
    ATTENTION,
    EXPERTS,
    PROJECTIONS,
    ROWS,
    Choices,
    Size,
    axes,
    text,
)
from longcat_kernels.mla_decode import pays
from longcat_kernels.small_linear.configs import TOKENS, Config, find, shape_key

CONTEXT = 4096  # cached tokens of a request
COLUMNS = ("size", "sweep", "axis", "choice", "us", "gpu", "commit")

Table = dict[str, dict[str, Any]]  # by tokens
Found = Mapping[Size, Choices]


def shipped(size: Size, experts: Mapping[str, Table], attention: str) -> Choices:
    """What the engine launches now. experts: the tables by axis; attention: the server's backend,
    for steps that ours does not take. ValueError for expert tiles that no candidate can replace."""
    tiles = {axis: _nearest(experts[axis], size.tokens) for axis in EXPERTS}
    projections = {
        name: find(shape.op, shape.rows, shape.columns, size.tokens)
        for name, shape in PROJECTIONS.items()
    }
    ours = pays(size.requests, size.width, CONTEXT)
    return {**tiles, **projections, ATTENTION: "split" if ours else attention}


def _nearest(table: Table, tokens: int) -> Tile:
    """As SGLang looks tiles up."""
    config = table[min(table, key=lambda key: abs(int(key) - tokens))]
    tile = tile_of(config)
    if tile.m != ROWS or config.get("USE_TMA"):
        raise ValueError(
            f"The expert tile for {tokens} tokens is {config}: expected {ROWS} rows and no loads "
            "by TMA, as in all candidates. Leave this size to tools/tune_experts.py."
        )
    return tile


def with_tiles(table: Table, axis: str, found: Found) -> Table:
    """A table of one expert GEMM with the entries of the sizes found."""
    new: Table = {}
    for size, choices in found.items():
        tile = choices[axis]
        assert isinstance(tile, Tile)
        new |= {str(tokens): tile.config() for tokens in size.experts}
    return dict(sorted({**table, **new}.items(), key=lambda entry: int(entry[0])))


def with_configs(
    table: Mapping[str, Mapping[str, Any]], found: Found
) -> dict[str, dict[str, Config | None]]:
    """Shapes of which an entry was tuned, with all their entries."""
    tuned: dict[str, dict[str, Config | None]] = {}
    for size, choices in found.items():
        for axis in axes(size) if size.projections else ():
            if axis.name not in PROJECTIONS or not axis.taken:
                continue
            shape, choice = PROJECTIONS[axis.name], choices[axis.name]
            assert choice is None or isinstance(choice, Config)
            key = shape_key(shape.op, shape.rows, shape.columns)
            none: dict[str, Config | None] = dict.fromkeys(map(str, TOKENS))
            entries = tuned.setdefault(key, {**none, **table.get(key, {})})
            entries |= {str(tokens): choice for tokens in size.projections}
    return tuned


def csv_rows(
    size: str, measured: Iterable[Measured], *, gpu: str, commit: str
) -> list[dict[str, object]]:
    def row(one: Measured) -> dict[str, object]:
        us = f"{one.us:.1f}"
        return dict(zip(COLUMNS, (size, one.sweep, one.axis, text(one.choice), us, gpu, commit)))

    return [row(one) for one in measured]
