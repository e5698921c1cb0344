"""Memory is released once, and resumed once; the live refusals are in tests/serving."""

from types import SimpleNamespace

import pytest

from sglang_longcat.hooks import release_memory, resume_memory, scheduler_errors
from sglang_longcat.requests.check import BadRequest

ALL = {"kv_cache", "weights", "cuda_graph"}


@pytest.fixture
def updater():
    """What the hooks read of SGLang's updater."""
    return SimpleNamespace(
        offload_tags=set(),
        is_fully_idle=lambda ignore_waiting: True,
        scheduler=SimpleNamespace(_engine_paused=False),
        memory_saver_adapter=SimpleNamespace(enabled=True),
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


def test_without_a_memory_saver(updater):
    updater.memory_saver_adapter.enabled = False
    with pytest.raises(BadRequest, match="without --enable-memory-saver"):
        release(updater)
    assert not updater.offload_tags


class TokenizedGenerateReqInput(SimpleNamespace):
    """Of this name the guard knows a generation."""


class UpdateWeightFromDiskReqInput(SimpleNamespace):
    pass


class ContinueGenerationReqInput(SimpleNamespace):
    pass


GENERATE, UPDATE = TokenizedGenerateReqInput(rid="1"), UpdateWeightFromDiskReqInput()
NEEDS = "First resume them"


@pytest.mark.parametrize(
    ("request_", "released", "paused", "refused"),
    [
        (GENERATE, set(), False, False),
        (GENERATE, {"kv_cache"}, False, True),
        (GENERATE, {"cuda_graph"}, False, True),
        (GENERATE, ALL, True, False),  # it waits
        (ContinueGenerationReqInput(), ALL, True, True),
        (UPDATE, {"weights", "kv_cache"}, False, True),
        (UPDATE, {"kv_cache"}, False, False),  # a trainer resumes the weights first
        (SimpleNamespace(), ALL, False, False),
    ],
)
def test_requests_in_released_memory(request_, released, paused, refused):
    """Red if such a request reaches a kernel, which ends the server, or if one is refused that a
    trainer sends between a release and a resume."""
    aborted, taken = [], []
    scheduler = SimpleNamespace(
        weight_updater=SimpleNamespace(offload_tags=released),
        _engine_paused=paused,
        send_abort_output=lambda abort, request: aborted.append(abort.finished_reason),
    )
    answer = scheduler_errors._guarded(scheduler, taken.append)(request_)
    assert taken == ([] if refused else [request_])
    if refused and request_ is GENERATE:
        assert aborted[0]["status_code"] == 400
        assert NEEDS in aborted[0]["message"]
    elif refused and request_ is UPDATE:
        assert not answer.success
        assert NEEDS in answer.message


def test_a_failure_is_no_release(updater):
    shared = updater.offload_tags
    assert release(updater, ["weights"]) == "released"

    def fails(updater, request):
        updater.offload_tags.add("kv_cache")
        raise RuntimeError("no GPU")

    with pytest.raises(RuntimeError):
        release_memory.apply(fails, updater, SimpleNamespace(tags=["kv_cache"]))
    assert shared == {"weights"}
