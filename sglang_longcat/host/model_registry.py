"""Our model classes in SGLang's registry, without an import of all other model files.

SGLang's registry imports all of its 250 model files when it is imported itself: 650 modules, and
1.2 s of CPU time in each process. If SGLANG_EXTERNAL_MODEL_PACKAGE names a package, SGLang imports
that one and leaves its own files until a model asks for one of them. Source: SGLang 0.5.23,
srt/models/registry.py, its last lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE = "sglang_longcat.models"


@contextmanager
def other_models_later() -> Iterator[None]:
    """Whoever imports the registry inside gets one that knows our package only, and reads SGLang's
    own files later. A package that the user named stays in force; ours is added by `register`.

    The variable is set inside only: a child process that serves SGLang's own model must not
    inherit it.
    """
    from sglang.srt.environ import envs

    name = envs.SGLANG_EXTERNAL_MODEL_PACKAGE.name
    if os.environ.get(name):
        yield
        return
    os.environ[name] = PACKAGE
    try:
        yield
    finally:
        del os.environ[name]


def register() -> None:
    """Our classes replace SGLang's of the same name. `ModelRegistry.register` does so too, but
    imports SGLang's files first.

    Raises what an import of our files raises: inside `other_models_later` SGLang only logs it.
    """
    from sglang.srt.models.registry import ModelRegistry, import_model_classes

    ModelRegistry.models.update(import_model_classes(PACKAGE, strict=True))
