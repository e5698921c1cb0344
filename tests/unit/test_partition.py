"""How many multiprocessors the experts are left, which steps ask, and that they stay there."""

from types import SimpleNamespace

import pytest
import torch

from sglang_longcat.models import branch, partition


def test_a_measured_gpu_keeps_some_for_the_dense_branch(monkeypatch):
    """Red if another GPU than those measured is partitioned unasked, or eights are not kept to."""
    assert [partition.sms_for_experts(total) for total in (132, 78, 148)] == [120, None, None]
    monkeypatch.setenv("LONGCAT_RESERVED_SMS", "20")
    assert [partition.sms_for_experts(total) for total in (132, 78)] == [112, 56]
    monkeypatch.setenv("LONGCAT_RESERVED_SMS", "0")
    assert partition.sms_for_experts(132) is None


def test_more_than_a_gpu_can_spare_is_refused(monkeypatch):
    monkeypatch.setenv("LONGCAT_RESERVED_SMS", "124")
    with pytest.raises(ValueError, match="this GPU has 132 multiprocessors: expected fewer than"):
        partition.sms_for_experts(132)


def test_small_steps_fill_the_gpu(monkeypatch):
    monkeypatch.setattr(partition, "prepare_partition", lambda: "stream")
    assert [partition.experts_stream(tokens) for tokens in (1, 4, 5)] == [None, None, "stream"]


def test_without_green_contexts_the_log_says_so(monkeypatch, caplog):
    """Red if an old driver ends the server for one percent of a step, or nobody hears of it."""
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    partition._stream.cache_clear()
    try:
        assert partition.prepare_partition() is None
    finally:
        partition._stream.cache_clear()
    assert "CUDA made no green context" in caplog.text
    assert "LONGCAT_RESERVED_SMS=0" in caplog.text


@pytest.mark.gpu
def test_a_captured_step_keeps_its_experts_apart(monkeypatch):
    """Red if a graph forgets where its kernels may run, if the branch may not run there, or if the
    results of either are not there when the streams have met."""
    import triton
    import triton.language as tl

    @triton.jit
    def note_sm(out_ptr, spin):
        for _ in range(spin):
            tl.debug_barrier()
        sm = tl.inline_asm_elementwise(
            "mov.u32 $0, %smid;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
        tl.store(out_ptr + tl.program_id(0), sm)

    monkeypatch.setattr(branch, "get_is_capture_mode", lambda: True)
    monkeypatch.setattr(branch, "get_parallel", lambda: SimpleNamespace(tp_size=1))
    total = torch.cuda.get_device_properties(0).multi_processor_count
    monkeypatch.setenv("LONGCAT_RESERVED_SMS", "12")
    partition._stream.cache_clear()
    allowed, programs = partition.sms_for_experts(total), 16 * total
    x = torch.ones(8, 8, device="cuda")

    def sms():
        out = torch.full((programs,), -1, dtype=torch.int32, device="cuda")
        note_sm[(programs,)](out, 200)
        return out

    def step():
        return branch.beside(x, urgent=lambda: 1, wide=lambda _: sms(), chain=sms)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        wide, chain = step()
        met = torch.stack([wide, chain])
    graph.replay()
    torch.cuda.synchronize()
    used, everywhere = met[0].unique(), met[1].unique()
    assert used.min() >= 0
    assert len(used) <= allowed
    assert set(everywhere.tolist()) - set(used.tolist())
