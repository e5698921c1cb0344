"""FP8 rows of the KV pool: the prologue stores exactly the bytes of the bf16 row, packed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from longcat_kernels import kv_rows, lite
from longcat_kernels.kv_pool import PADDING_SLOT
from longcat_kernels.mla_prologue import norm_and_store, norm_quantise_and_store
from longcat_kernels.mla_prologue.workloads import Inputs, make_inputs

SMALL = {"heads": 1, "q_lora": 128, "kv_lora": 128, "nope": 16, "rope": 16, "context": 300}


def store(inputs: Inputs, *, neox: bool = False, quantise: bool = False) -> object:
    names = ("positions", "cos_sin", "slots", "kv_buffer")
    op = norm_quantise_and_store if quantise else norm_and_store
    return op(
        inputs.qkv,
        inputs.q_weight,
        inputs.kv_weight,
        eps=lite.EPS,
        neox=neox,
        **{name: getattr(inputs, name) for name in names},
    )


def twins(tokens: int, device: str, **sizes: int) -> tuple[Inputs, Inputs]:
    """The same inputs with a bf16 pool and with an FP8 one. Quarters of the latent differ much in
    size, so that a scale of another quarter would show."""
    inputs = make_inputs(tokens, seed=tokens, device=device, **sizes)
    width = inputs.kv_weight.shape[0]
    spread = torch.tensor([1e-3, 1.0, 30.0, 0.0], device=device).repeat_interleave(width // 4)
    inputs.kv_weight.mul_(spread)
    pool = kv_rows.pack(inputs.kv_buffer, width)
    return inputs, dataclasses.replace(inputs, kv_buffer=pool)


@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 2, 17])
def test_the_bytes_are_those_of_the_packed_row(device: str, tokens: int, neox: bool) -> None:
    """Red if one bit of a value, a scale or the rope part differs, or if another row changes. The
    last quarter consists of zeros: 0 / 0 would be NaN."""
    plain, packed = twins(tokens, device, **SMALL)
    before = packed.kv_buffer.clone()
    q_lora, same = store(plain, neox=neox), store(packed, neox=neox)
    assert isinstance(q_lora, torch.Tensor)
    assert torch.equal(q_lora, same)
    wanted = before
    wanted[plain.slots] = kv_rows.pack(plain.kv_buffer[plain.slots], 128)
    assert torch.equal(packed.kv_buffer, wanted)


def test_the_models_own_sizes_beside_a_quantised_query(device: str) -> None:
    plain, packed = twins(3, device, heads=1)
    store(plain)
    store(packed, quantise=True)
    rows = packed.kv_buffer[plain.slots]
    assert rows.shape == (3, 1, 656)
    assert torch.equal(rows, kv_rows.pack(plain.kv_buffer[plain.slots], lite.KV_LORA))


def test_the_padding_slot_keeps_its_bits(device: str) -> None:
    _, packed = twins(6, device, **SMALL)
    before = packed.kv_buffer.clone()
    packed.slots[[1, 4, 5]] = PADDING_SLOT
    store(packed)
    assert torch.equal(packed.kv_buffer[PADDING_SLOT], before[PADDING_SLOT])
    changed = (packed.kv_buffer != before).flatten(1).any(dim=1).nonzero().flatten()
    assert changed.tolist() == sorted(packed.slots[[0, 2, 3]].tolist())


def test_rows_of_another_kind_are_refused(device: str) -> None:
    _, packed = twins(2, device, **SMALL)
    with pytest.raises(ValueError, match=r"rows of \[1, 176\]"):
        store(dataclasses.replace(packed, kv_buffer=packed.kv_buffer[..., 1:]))
    with pytest.raises(ValueError, match="or bf16 for FP8"):
        store(dataclasses.replace(packed, qkv=packed.qkv.half()))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 30, 128])
def test_a_captured_step_follows_its_inputs(tokens: int) -> None:
    plain, packed = twins(tokens, "cuda")
    store(packed)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        store(packed)
    for seed in range(1, 5):
        fresh = make_inputs(tokens, seed=seed, device="cuda")
        for name in ("qkv", "positions", "slots"):  # the twins share them
            getattr(packed, name).copy_(getattr(fresh, name))
        graph.replay()
        store(plain)
        wanted = kv_rows.pack(plain.kv_buffer[plain.slots], lite.KV_LORA)
        assert torch.equal(packed.kv_buffer[plain.slots], wanted)
