"""Our classes are registered, and no other model file of SGLang is imported for them.

Each test runs in a process whose preload has not imported SGLang's registry.
"""

import ast
import os
import subprocess
import sys

import pytest

from sglang_longcat.host import model_registry
from tests.harness import run_python

VARIABLE = "SGLANG_EXTERNAL_MODEL_PACKAGE"


def printed(source):
    return ast.literal_eval(run_python(source).strip().splitlines()[-1])


def test_plugin_leaves_other_model_files_alone():
    """Red if an import that `register` needs brings all of SGLang's 250 model files back, or if its
    file of the same class replaces ours once a server asks for another model."""
    seen = printed("""
        import os, sys
        from sglang.srt.plugins import load_plugins
        load_plugins()
        files = [name for name in sys.modules if name.startswith("sglang.srt.models.")]
        from sglang.srt.models.registry import ModelRegistry
        names = ["LongcatFlashForCausalLM", "LongcatFlashForCausalLMNextN"]
        def resolved():
            return [ModelRegistry.resolve_model_cls([name])[0].__module__ for name in names]
        registered, ours = sorted(ModelRegistry.models), resolved()
        other = ModelRegistry.resolve_model_cls(["LlamaForCausalLM"])[0].__module__
        print({
            "files": len(files), "llama": "sglang.srt.models.llama" in files,
            "registered": registered, "ours": ours, "other": other, "after": resolved(),
            "variable": os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE"),
        })
    """)
    ours = [
        f"{model_registry.PACKAGE}.longcat_flash",
        f"{model_registry.PACKAGE}.longcat_flash_nextn",
    ]
    assert seen["registered"] == ["LongcatFlashForCausalLM", "LongcatFlashForCausalLMNextN"]
    assert (seen["ours"], seen["after"]) == (ours, ours)
    assert seen["other"] == "sglang.srt.models.llama"
    assert seen["files"] < 40
    assert not seen["llama"]
    assert seen["variable"] is None


def test_package_of_the_user_stays_in_force():
    """Both are registered: the user's by SGLang, ours by the plugin."""
    seen = printed("""
        import os
        os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = "sglang_longcat.assets"
        from sglang_longcat.host import model_registry
        with model_registry.other_models_later():
            import sglang.srt.models.registry as registry
        before = sorted(registry.ModelRegistry.models)
        model_registry.register()
        print({
            "before": before, "after": sorted(registry.ModelRegistry.models),
            "variable": os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"],
        })
    """)
    assert seen["before"] == []
    assert seen["after"] == ["LongcatFlashForCausalLM", "LongcatFlashForCausalLMNextN"]
    assert seen["variable"] == "sglang_longcat.assets"


def test_a_model_file_of_ours_that_fails_is_an_error():
    """SGLang only logs it, and would serve its own class."""
    seen = printed("""
        import sys
        sys.modules["sglang_longcat.models.longcat_flash"] = None  # its import now fails
        from sglang_longcat import plugin
        try:
            plugin.register()
        except SystemExit as error:
            print([str(error)])
    """)
    assert "could not register" in seen[0]
    assert "sglang_longcat.models.longcat_flash" in seen[0]


def test_variable_is_gone_after_an_error(monkeypatch):
    """A child that serves SGLang's own model must not inherit it."""
    monkeypatch.delenv(VARIABLE, raising=False)

    def fail():
        with model_registry.other_models_later():
            raise KeyError(os.environ[VARIABLE])

    with pytest.raises(KeyError, match=model_registry.PACKAGE):
        fail()
    assert VARIABLE not in os.environ


def test_importing_the_plugin_imports_neither_sglang_nor_torch():
    """SGLang imports this module in every process before it knows whether the plugin is wanted."""
    script = (
        "import sys, sglang_longcat.plugin; print(sorted({'sglang', 'torch', 'transformers',"
        " 'triton', 'numpy', 'fastapi'} & set(sys.modules)), len(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("[] ")
