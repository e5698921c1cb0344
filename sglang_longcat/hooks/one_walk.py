"""Look for the copies of all hooked functions in one walk over the modules, not one walk for each.

Why: a module may hold its own copy of a hooked function (`from x import f`). SGLang looks for it in
every name of every module, 340,000 names and 45 ms, for each target. For all of our targets that
is 1.6 s of CPU time in each process. `register_all` applies this hook before all others.
Upstream: plugins/hook_registry.py, _propagate_patch, which _apply_target calls.
Remove when: SGLang walks once for all targets.
"""

from __future__ import annotations

import contextlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType

TARGET = "sglang.srt.plugins.hook_registry._propagate_patch"
Walk = Callable[[object, object, object], int]


@dataclass(frozen=True)
class _Copies:
    """Where modules hold the functions that wait for a hook."""

    functions: dict[int, FunctionType]  # by id; also keeps them alive, so that no id is given again
    places: dict[int, list[tuple[ModuleType, str]]]
    modules: int  # how many there were: one that was imported later may hold a copy, too


_found: list[_Copies] = []  # the last walk, or empty


def apply(walk: Walk, original: object, wrapped: object, source: object) -> int:
    """Returns the number of copies replaced. SGLang's own walk answers for what ours did not look
    for: a class, or a function that another hook has put there in the meantime."""
    if not _found or _found[0].modules != len(sys.modules):
        _found[:] = [_walk(_waiting())]
    if id(original) not in _found[0].functions:
        return walk(original, wrapped, source)
    replaced = 0
    for module, name in _found[0].places.get(id(original), ()):
        if module is source or vars(module).get(name) is not original:
            continue
        with contextlib.suppress(AttributeError, TypeError):  # a module that refuses, as in SGLang
            setattr(module, name, wrapped)
            replaced += 1
    return replaced


def _waiting() -> dict[int, FunctionType]:
    """The functions of all targets that SGLang has not hooked yet."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    targets = HookRegistry._hooks.keys() - HookRegistry._patched
    functions = filter(None, map(_function, targets))
    return {id(function): function for function in functions}


def _function(target: str) -> FunctionType | None:
    """What the target names, without classmethod or staticmethod. None if it is no function, or not
    there: SGLang says so when it comes to this target."""
    owner, _, name = target.rpartition(".")
    try:
        found = getattr(pkgutil.resolve_name(owner), name)
    except (AttributeError, ImportError, ValueError):
        return None
    found = getattr(found, "__func__", found)
    return found if isinstance(found, FunctionType) else None


def _walk(functions: dict[int, FunctionType]) -> _Copies:
    places: dict[int, list[tuple[ModuleType, str]]] = {}
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in functions:
                places.setdefault(id(value), []).append((module, name))
    return _Copies(functions, places, len(sys.modules))
