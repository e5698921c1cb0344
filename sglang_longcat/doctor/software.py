"""Versions, and whether the plugin is active in a process that SGLang starts.

Owns: these findings. What we need of SGLang is checked by `host/contract.py`, the hooks by `hooks`.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, entry_points, version

from sglang_longcat import env
from sglang_longcat.doctor.finding import Finding

_PACKAGES = ("sglang-longcat", "sglang", "torch", "triton", "transformers", "flashinfer-python")
_GROUP = "sglang.srt.plugins"


def check() -> list[Finding]:
    findings = [_versions(), *_contract()]
    if any(finding.status == "error" for finding in findings):
        return findings  # loading the plugin would stop with the same error
    return [*findings, _entry_point(), *_plugin()]


def _versions() -> Finding:
    words = [f"Python {sys.version.split()[0]}", *map(_version, _PACKAGES)]
    return Finding.info("versions", ", ".join(words))


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def _contract() -> list[Finding]:
    from sglang_longcat.host import contract

    try:
        lines = contract.problems()
    except PackageNotFoundError:
        lines = [f"SGLang is not installed: pip install 'sglang{contract.SUPPORTED}'"]
    if lines:
        advice = f". Install the supported SGLang: pip install 'sglang{contract.SUPPORTED}'"
        return [Finding.error("SGLang", line + advice) for line in lines]
    return [
        Finding.ok("SGLang", f"all {len(contract.ATTRIBUTES)} attributes that we rely on are there")
    ]


def _entry_point() -> Finding:
    """SGLang finds plugins by their package metadata. A source tree on PYTHONPATH has none."""
    if "longcat" in entry_points(group=_GROUP).names:
        return Finding.ok("entry point", f"'longcat' in {_GROUP}")
    return Finding.error(
        "entry point",
        f"SGLang would not find the plugin: no 'longcat' in {_GROUP}. Install the package "
        "(pip install .) into this environment.",
    )


def _plugin() -> list[Finding]:
    if env.disabled():
        return [
            Finding.warning(
                "plugin", "LONGCAT_DISABLE=1: SGLang's own model; unset it to serve ours"
            )
        ]
    from sglang.srt.plugins import load_plugins

    from sglang_longcat import hooks

    try:
        load_plugins()
        hooks.verify()
    except (SystemExit, RuntimeError) as error:
        return [Finding.error("plugin", str(error))]
    return [Finding.ok("plugin", f"registered; {len(hooks.ALL)} hooks in force")]
