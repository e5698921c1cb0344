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
from types import ModuleType

TARGET = "sglang.srt.plugins.hook_registry._propagate_patch"
Walk = Callable[[object, object, object], int]


@dataclass(frozen=True)
class _Copies:
    """Where modules hold the functions that wait for a hook."""

    functions: dict[int, object]  # by id; also keeps them alive, so that no id is given again
    places: dict[int, list[tuple[ModuleType, str]]]
    modules: int  # how many there were: one that was imported later may hold a copy, too


_found: list[_Copies] = []  # the last walk, or empty


def apply(_sglangs: Walk, original: object, wrapped: object, source: object) -> int:
    """Replaces `original` by `wrapped` in every module but `source`, where SGLang has done so.
    Returns how many names that were. Walks if the last walk did not look for `original`."""
    found = _found[0] if _found else None
    if found is None or found.modules != len(sys.modules) or id(original) not in found.functions:
        found = _walk({id(original): original, **_waiting()})
        _found[:] = [found]
    replaced = 0
    for module, name in found.places.get(id(original), ()):
        if module is source or vars(module).get(name) is not original:
            continue
        with contextlib.suppress(AttributeError, TypeError):  # a module that refuses, as in SGLang
            setattr(module, name, wrapped)
            replaced += 1
    return replaced


def _waiting() -> dict[int, object]:
    """What all targets name that SGLang has not hooked yet."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    targets = HookRegistry._hooks.keys() - HookRegistry._patched
    functions = map(_function, targets)
    return {id(function): function for function in functions if function is not None}


def _function(target: str) -> object | None:
    """What the target names, without classmethod or staticmethod. None if it is a class, or not
    there: SGLang says so when it comes to this target."""
    owner, _, name = target.rpartition(".")
    try:
        found = getattr(pkgutil.resolve_name(owner), name)
    except (AttributeError, ImportError, ValueError):
        return None
    return None if isinstance(found, type) else getattr(found, "__func__", found)


def _walk(functions: dict[int, object]) -> _Copies:
    places: dict[int, list[tuple[ModuleType, str]]] = {}
    values: list[object] = list(sys.modules.values())  # some packages put other objects there
    for module in values:
        if not isinstance(module, ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in functions:
                places.setdefault(id(value), []).append((module, name))
    return _Copies(functions, places, len(sys.modules))
