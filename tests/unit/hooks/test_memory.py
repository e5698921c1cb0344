"""Memory is released once, and resumed once; the live refusals are in tests/serving."""

from types import SimpleNamespace

import pytest

from sglang_longcat.hooks import release_memory, resume_memory
from sglang_longcat.requests.check import BadRequest

ALL = {"kv_cache", "weights", "cuda_graph"}


@pytest.fixture
def updater():
    """What the hooks read of SGLang's updater."""
    return SimpleNamespace(
        offload_tags=set(),
        is_fully_idle=lambda ignore_waiting: True,
        scheduler=SimpleNamespace(_engine_paused=False),
    )


def release(updater, tags=None):
    """As SGLang does."""

    def original(updater, request):
        updater.offload_tags |= set(request.tags or ALL)
        return "released"

    return release_memory.apply(original, updater, SimpleNamespace(tags=tags))


def resume(updater, tags=None):
    def original(updater, request):
        updater.offload_tags -= set(request.tags or ALL)
        return "resumed"

    return resume_memory.apply(original, updater, SimpleNamespace(tags=tags))


def test_once(updater):
    """Red if a second release saves weights that are gone, or a second resume ends the server."""
    assert release(updater, ["weights"]) == "released"
    with pytest.raises(BadRequest, match="already released"):
        release(updater)
    with pytest.raises(BadRequest, match="not released"):
        resume(updater)
    assert release(updater, ["kv_cache", "cuda_graph"]) == "released"
    assert resume(updater) == "resumed"
    with pytest.raises(BadRequest, match="not released"):
        resume(updater, ["weights"])


def test_a_failure_is_no_release(updater):
    shared = updater.offload_tags
    assert release(updater, ["weights"]) == "released"

    def fails(updater, request):
        updater.offload_tags.add("kv_cache")
        raise RuntimeError("no GPU")

    with pytest.raises(RuntimeError):
        release_memory.apply(fails, updater, SimpleNamespace(tags=["kv_cache"]))
    assert shared == {"weights"}
