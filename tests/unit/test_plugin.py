"""Registration that cannot fail silently: SGLang only logs the exceptions of a plugin."""

from collections import defaultdict

import pytest
from torch import nn

from sglang_longcat import hooks, plugin
from sglang_longcat.host import contract
from tests.harness import HarnessError, run_python


def test_failure_ends_a_process_that_loads_plugins():
    """SGLang's real load_plugins with an SGLang attribute gone: it must not reach the next line."""
    script = """
        from sglang_longcat.host import contract
        contract.ATTRIBUTES = (contract.Needs("plugins.hook_registry:HookRegistry.gone"),)
        from sglang.srt.plugins import load_plugins
        load_plugins()
        print("still running")
    """
    with pytest.raises(HarnessError, match="script: SystemExit: ") as error:
        run_python(script)
    said = str(error.value)
    assert "still running" not in said
    assert "HookRegistry.gone: expected to exist" in said
    assert "pip install 'sglang==0.5.23'" in said


def test_any_exception_becomes_an_exit(monkeypatch):
    def fail():
        raise KeyError("something upstream")

    monkeypatch.setattr(contract, "require", fail)
    with pytest.raises(SystemExit, match=r"could not register: KeyError.*something upstream"):
        plugin.register()


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_disabled_registers_nothing(monkeypatch, value):
    monkeypatch.setenv("LONGCAT_DISABLE", value)
    monkeypatch.setattr(plugin, "_register", lambda: pytest.fail("registered"))
    plugin.register()


@pytest.mark.parametrize("value", ["", "0", "off"])
def test_not_disabled(monkeypatch, value):
    calls = []
    monkeypatch.setenv("LONGCAT_DISABLE", value)
    monkeypatch.setattr(plugin, "_register", lambda: calls.append("registered"))
    plugin.register()
    assert calls == ["registered"]


def test_unreadable_switch_is_an_error(monkeypatch):
    """An exception would be swallowed, and somebody's A/B would compare a model with itself."""
    monkeypatch.setenv("LONGCAT_DISABLE", "maybe")
    with pytest.raises(SystemExit, match="LONGCAT_DISABLE='maybe': expected 1 or 0"):
        plugin.register()


@pytest.fixture
def registry(monkeypatch):
    """SGLang's hook registry as after a successful start, without having patched anything."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    applied = {hook.TARGET: [(HookType.AFTER, hook.apply, None)] for hook in hooks.ALL}
    monkeypatch.setattr(HookRegistry, "_hooks", defaultdict(list, applied))
    monkeypatch.setattr(HookRegistry, "_patched", {hook.TARGET for hook in hooks.ALL})
    return HookRegistry


@pytest.mark.usefixtures("registry")
def test_hooks_in_force():
    hooks.verify()


@pytest.mark.parametrize("hook", hooks.ALL, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("state", ["_hooks", "_patched"])
def test_a_hook_that_did_not_apply_stops_the_model(registry, hook, state):
    """Not registered (this process loaded no plugins), or SGLang failed to apply it and only logged
    that. The model asks before it builds or reads anything: a config is not even looked at."""
    from sglang_longcat.models.longcat_flash import LongcatFlashForCausalLM

    entries = getattr(registry, state)
    entries.pop(hook.TARGET) if state == "_hooks" else entries.remove(hook.TARGET)
    model = nn.Module.__new__(LongcatFlashForCausalLM)
    with pytest.raises(RuntimeError, match=f"{hook.TARGET} did not apply") as error:
        LongcatFlashForCausalLM.__init__(model, config=None)
    assert "LONGCAT_DISABLE=1" in str(error.value)
