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


def test_what_no_target_names_is_found_too(monkeypatch, owner):
    """A class that a plugin replaces, and what another hook has put in place of it."""

    class Theirs:
        pass

    first, second = object(), object()
    one = module(monkeypatch, "longcat_test_one", copy=Theirs)
    one_walk.apply(no_walk, owner.function, object(), owner)
    for original, wrapped in ((Theirs, first), (first, second)):
        assert one_walk.apply(no_walk, original, wrapped, owner) == 1
        assert one.copy is wrapped


def test_same_copies_as_with_sglangs_walk():
    """The real hooks in a real process: after load_plugins no module holds a function that a hook
    replaced, and some hold copies of what replaced it. SGLang's walk is never taken, ours for
    this hook, for the first of the others, and perhaps for one that was registered later."""
    seen = run_python("""
        import functools, pkgutil, sys, types
        from sglang.srt.plugins import hook_registry, load_plugins
        from sglang_longcat.hooks import one_walk
        walks, walk, theirs = [], one_walk._walk, hook_registry._propagate_patch
        one_walk._walk = lambda wanted: walks.append(1) or walk(wanted)
        @functools.wraps(theirs)
        def unexpected(*arguments):
            walks.extend([1] * 1000)
            return theirs(*arguments)
        hook_registry._propagate_patch = unexpected
        load_plugins()

        def hooked(target):
            owner, _, name = target.rpartition(".")
            found = getattr(pkgutil.resolve_name(owner), name)
            return getattr(found, "__func__", found)

        patched = hook_registry.HookRegistry._patched
        new = {id(function): function for function in map(hooked, patched)}
        old = {id(function.__wrapped__): function for function in new.values()}
        names = [
            (module, name, id(value))
            for module in sys.modules.values() if isinstance(module, types.ModuleType)
            for name, value in vars(module).items()
        ]
        stale = [(module.__name__, name) for module, name, value in names if value in old]
        fresh = [value for _, _, value in names if value in new]
        print([len(new) > 30, 1 <= len(walks) <= 3, stale, len(fresh) > len(set(fresh))])
    """)
    assert ast.literal_eval(seen.strip().splitlines()[-1]) == [True, True, [], True]
