"""Whether chosen tiles compute what they have to, by the checks of the tools that tune each kernel
alone. For tools/tune_layer.py.
"""

from __future__ import annotations

from collections.abc import Callable

from tune_small_linear import Timer

from expert_search import Pair
from expert_space import Tile, Variant
from expert_timing import Bench
from layer_space import EXPERTS, PROJECTIONS, Choices, Size, text
from longcat_kernels.small_linear import workloads
from longcat_kernels.small_linear.configs import Config
from tune_experts import ALIKE


def checked(
    size: Size,
    found: Choices,
    shipped: Choices,
    bench: Bench,
    agrees: Callable[[workloads.Shape, int, Config], bool] | None = None,
) -> Choices:
    """`found`, with the shipped choice for a projection that is off its reference, and for experts
    that are off the shipped pair."""
    right, agrees = dict(found), agrees or projection_agrees
    for name, shape in PROJECTIONS.items():
        config = found[name]
        if not isinstance(config, Config) or config == shipped[name]:
            continue
        if not agrees(shape, size.tokens, config):
            right[name] = shipped[name]
    distance = bench.differs(size.tokens, _pair(found), _pair(shipped))
    if not distance <= ALIKE:  # NaN too
        print(f"{size.name}: experts off by {distance:.3g} of the shipped pair's output")
        right |= {axis: shipped[axis] for axis in EXPERTS}
    for name in (name for name in found if right[name] != found[name]):
        print(f"{size.name}: {name} {text(found[name])} is wrong; keeping {text(right[name])}")
    return right


def projection_agrees(shape: workloads.Shape, tokens: int, config: Config) -> bool:
    weight = workloads.make_inputs(1, shape.rows, shape.columns, seed=0, device="cuda")[1]
    try:
        Timer(shape, tokens, [weight]).check(config)
    except AssertionError as error:
        print(str(error).splitlines()[:1])
        return False
    return True


def _pair(choices: Choices) -> Pair:
    tiles = {op: choices[axis] for axis, op in EXPERTS.items()}
    up, down = tiles["up"], tiles["down"]
    assert isinstance(up, Tile)
    assert isinstance(down, Tile)
    return Variant("up", up), Variant("down", down)
