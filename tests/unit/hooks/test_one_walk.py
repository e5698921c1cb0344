"""Copies of hooked functions are found in one walk, and none is missed that SGLang would find."""

import ast
import sys
import types
from collections import defaultdict

import pytest

from sglang_longcat.hooks import one_walk
from tests.harness import run_python

OWNER = "longcat_test_owner"


def module(monkeypatch, name, **names):
    made = types.ModuleType(name)
    vars(made).update(names)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class Host:
    @classmethod
    def made(cls):
        return cls

    def method(self):
        return self


@pytest.fixture
def owner(monkeypatch):
    def function():
        return "original"

    return module(monkeypatch, OWNER, function=function, Host=Host)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    from sglang.srt.plugins.hook_registry import HookRegistry

    targets = ("function", "Host.made", "Host.method", "gone")
    waiting = {f"{OWNER}.{name}": [] for name in targets}
    monkeypatch.setattr(HookRegistry, "_hooks", defaultdict(list, waiting))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    monkeypatch.setattr(one_walk, "_found", [])


def no_walk(*arguments):
    pytest.fail(f"SGLang's own walk for {arguments}")


def test_copies_in_all_modules_are_replaced(monkeypatch, owner):
    one = module(monkeypatch, "longcat_test_one", function=owner.function, other=len)
    two = module(monkeypatch, "longcat_test_two", renamed=owner.function)
    original, wrapped = owner.function, object()
    assert one_walk.apply(no_walk, original, wrapped, owner) == 2
    assert (one.function, two.renamed, one.other) == (wrapped, wrapped, len)
    assert owner.function is original  # SGLang has set that one already


def test_methods_are_looked_for_in_the_same_walk(monkeypatch, owner):
    """With and without classmethod, as SGLang hands them over."""
    one = module(monkeypatch, "longcat_test_one", copy=Host.method)
    function = vars(Host)["made"].__func__
    walks, walk = [], one_walk._walk
    monkeypatch.setattr(one_walk, "_walk", lambda wanted: walks.append(1) or walk(wanted))
    assert one_walk.apply(no_walk, function, object(), Host) == 0
    wrapped = object()
    assert one_walk.apply(no_walk, Host.method, wrapped, Host) == 1
    assert one.copy is wrapped
    assert walks == [1]


def test_module_imported_after_the_walk_is_searched(monkeypatch, owner):
    one_walk.apply(no_walk, Host.method, object(), Host)
    late = module(monkeypatch, "longcat_test_late", function=owner.function)
    wrapped = object()
    assert one_walk.apply(no_walk, owner.function, wrapped, owner) == 1
    assert late.function is wrapped


def test_name_that_has_changed_since_the_walk_stays(monkeypatch, owner):
    one = module(monkeypatch, "longcat_test_one", function=owner.function)
    one_walk.apply(no_walk, Host.method, object(), Host)
    one.function = len
    assert one_walk.apply(no_walk, owner.function, object(), owner) == 0
    assert one.function is len


def test_sglang_walks_for_everything_else(owner):
    """A class that a plugin replaces, or a function that no target names."""
    calls = []
    walk = lambda *arguments: calls.append(arguments) or 7  # noqa: E731
    for original in (Host, len, lambda: None):
        assert one_walk.apply(walk, original, "wrapped", owner) == 7
        assert calls.pop() == (original, "wrapped", owner)


def test_same_copies_as_with_sglangs_walk():
    """The real hooks in a real process: after load_plugins no module has a function any more that a
    hook replaced. SGLang walks once, for this hook itself."""
    seen = ast.literal_eval(
        run_python("""
        import sys, types
        from sglang.srt.plugins import hook_registry, load_plugins
        walks, walk = [], hook_registry._propagate_patch
        def counted(*arguments):
            walks.append(1)
            return walk(*arguments)
        hook_registry._propagate_patch = counted
        load_plugins()
        import pkgutil
        patched = hook_registry.HookRegistry._patched
        originals = {}
        for target in patched:
            owner, _, name = target.rpartition(".")
            found = getattr(pkgutil.resolve_name(owner), name)
            found = getattr(found, "__func__", found)
            originals[id(found.__wrapped__)] = target
        stale = [
            (module.__name__, name)
            for module in list(sys.modules.values()) if isinstance(module, types.ModuleType)
            for name, value in list(vars(module).items()) if id(value) in originals
        ]
        stale = [pair for pair in stale if pair[0] != "__main__"]
        print([len(patched) > 30, len(walks), stale])
        """)
        .strip()
        .splitlines()[-1]
    )
    assert seen == [True, 1, []]
