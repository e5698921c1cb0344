"""4-bit checkpoints on GPUs: SGLang's Marlin kernels in bf16 against the fp32 oracle, graphs on.

Run all of it with `make test-gpu ARGS=tests/model/test_packed_gpu.py`. With cold caches nvcc builds
Marlin's modules for more than 8 minutes, one after the other. The bounds are those of bf16
(`test_engine_gpu`): a 4-bit weight is a bf16 number before it is multiplied.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernels.packed_linear import marlin_call
from longcat_kernels import packed_linear
from longcat_kernels.packed_linear import marlin, workloads
from sglang_longcat.checkpoint.packing import PackedWeight, dequantise, pack, unpack_awq
from sglang_longcat.cpu.experts import routed_experts
from sglang_longcat.testing.engine_flags import nextn
from sglang_longcat.testing.packed import Scheme, meaning_of, write_packed
from sglang_longcat.testing.tiny import TinyOptions
from tests.harness import engine
from tests.model.test_engine_gpu import SMALL, check, generate
from tests.model.test_packed import AUTO_ROUND, SCHEMES

FLAGS: dict[str, Any] = {"attention_backend": "flashinfer", "timeout": 1800}
PROMPTS = [[1, *range(400, 400 + length)] for length in (1, 3, 40, 700)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCHEMES)
def test_formats(name: str, tmp_path: Path) -> None:
    """Red if Marlin reads values, scales or zero points in another order than the CPU does, or if
    an identity slot reads an expert."""
    path = write_packed(tmp_path / "tiny", SCHEMES[name], TinyOptions())
    check(meaning_of(path), PROMPTS, generate(path, PROMPTS, **FLAGS))


@pytest.mark.gpu
def test_one_token_at_a_time(tmp_path: Path) -> None:
    """SGLang sorts the slots of a single token with a kernel of its own, for which its experts are
    distinct: red if several identity slots, which all have id -1, disturb it."""
    path = write_packed(tmp_path / "tiny", AUTO_ROUND, TinyOptions())
    for prompt in PROMPTS[1:]:
        check(meaning_of(path), [prompt], generate(path, [prompt], **FLAGS), bound=0.2)


@pytest.mark.multi_gpu(2)
@pytest.mark.parametrize("name", ["auto-round", "awq", "compressed-tensors-zeros"])
@pytest.mark.parametrize("ep_size", [1, 2])
def test_two_gpus(name: str, ep_size: int, tmp_path: Path) -> None:
    """Red if a rank gets the scales or zero points of another one, or of other experts."""
    path = write_packed(tmp_path / "tiny", SCHEMES[name], TinyOptions())
    results = generate(path, PROMPTS, tp_size=2, ep_size=ep_size, **FLAGS)
    check(meaning_of(path), PROMPTS, results)


@pytest.mark.gpu
@pytest.mark.parametrize("mtp", [False, True], ids=["bf16-draft", "4-bit-draft"])
def test_draft(mtp: bool, tmp_path: Path) -> None:
    """Red if the MTP layer does not start on Marlin, or if a verify window is another computation
    than a decode step."""
    path = write_packed(tmp_path / "tiny", Scheme("auto-round", mtp=mtp), TinyOptions())
    check(meaning_of(path), PROMPTS, generate(path, PROMPTS, **nextn(2), **FLAGS))


@pytest.mark.gpu
def test_update_is_refused(tmp_path: Path) -> None:
    """Red if a weight update writes into parameters that have been repacked for Marlin."""
    path = write_packed(tmp_path / "tiny", AUTO_ROUND, TinyOptions())
    gpu: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16"}
    with engine(path, spawn=True, **gpu, **SMALL, **FLAGS) as llm:
        done, message, _ = llm.call("update_weights_from_disk", str(path))
        assert not done
        assert "Start a server with the new weights" in message


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "columns", "group"), [(2112, 512, 128), (128, 256, 32)])
def test_marlins_order(rows: int, columns: int, group: int) -> None:
    """SGLang's repacking against ours, from compressed-tensors' order. Red if it changes: our
    kernel for few tokens then reads other numbers."""
    import_module("sglang.srt.layers.quantization")  # first: it and marlin_utils import each other
    from sglang.kernels.ops.quantization.gptq_marlin_repack import gptq_marlin_repack
    from sglang.srt.layers.quantization import marlin_utils

    draw = torch.Generator().manual_seed(rows)
    values = torch.randint(0, 16, (rows, columns), generator=draw)
    scales = torch.rand(rows, columns // group, generator=draw).bfloat16()
    ours = marlin.pack(values, scales)
    words = pack(values, 1).t().contiguous().cuda()
    none = torch.empty(0, dtype=torch.int32, device="cuda")
    assert torch.equal(gptq_marlin_repack(words, none, columns, rows, 4).cpu(), ours.words)
    permuted = marlin_utils.marlin_permute_scales(scales.t().contiguous(), columns, rows, group)
    assert torch.equal(permuted, ours.scales)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", workloads.RANKS[1], ids=lambda s: s.name)
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_few_tokens_give_what_marlin_gives(shape: workloads.Shape, tokens: int) -> None:
    """Marlin rounds each weight to bf16, which changes a result by 2^-9 of its terms."""
    weight = workloads.make_weight(shape.rows, shape.columns, seed=tokens, device="cuda")
    x = workloads.make_x(tokens, shape.columns, seed=tokens, device="cuda")
    got = packed_linear.linear(x, weight)
    torch.testing.assert_close(got, marlin_call(x, weight)(), rtol=2**-6, atol=2**-6)


EXPERTS, HIDDEN, INNER, GROUP = 8, 256, 256, 128


def expert_weights(outputs: int, inputs: int, seed: int) -> tuple[torch.Tensor, ...]:
    """(values [E, i/8, o], scales [E, i/g, o], zero points [E, i/g, o/8] in AWQ's order), as
    SGLang's expert layers hold them before they are repacked."""
    draw = torch.Generator().manual_seed(seed)
    groups = inputs // GROUP
    words = [
        torch.randint(-(2**31), 2**31 - 1, shape, generator=draw, dtype=torch.int64).int()
        for shape in ((EXPERTS, inputs // 8, outputs), (EXPERTS, groups, outputs // 8))
    ]
    scales = (0.5 + torch.rand(EXPERTS, groups, outputs, generator=draw)) / (8 * inputs**0.5)
    return words[0], scales.bfloat16(), words[1]


def whole(weights: tuple[torch.Tensor, ...], *, symmetric: bool) -> torch.Tensor:
    values, scales, zeros = weights
    experts = []
    for expert in range(EXPERTS):
        points = None if symmetric else unpack_awq(zeros[expert]).t()
        packed = PackedWeight(values[expert].t(), scales[expert].t(), points)
        experts.append(dequantise(packed, GROUP))
    return torch.stack(experts)


@pytest.mark.gpu
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 7, 64])
def test_identity_slots(tokens: int, symmetric: bool) -> None:
    """SGLang's Marlin experts with ids of -1, rows that have no other among them. Red if such a
    slot adds anything, or reads beyond the experts."""
    import_module("sglang.srt.layers.quantization")  # first: it and gptq_kernels import each other
    from sglang.srt.hardware_backend.gpu.quantization.gptq_kernels import gptq_marlin_moe_repack
    from sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe import fused_marlin_moe
    from sglang.srt.layers.quantization import marlin_utils

    w13, w2 = expert_weights(2 * INNER, HIDDEN, 1), expert_weights(HIDDEN, INNER, 2)
    draw = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, HIDDEN, generator=draw).bfloat16()
    ids = torch.rand(tokens, EXPERTS, generator=draw).argsort(dim=1)[:, :6].int()
    ids[:, 2:4] = -1
    ids[tokens // 2] = -1
    gains = torch.rand(tokens, 6, generator=draw)
    none = torch.empty(EXPERTS, 0, dtype=torch.int32, device="cuda")
    marlin = []
    for (values, scales, zeros), inputs in ((w13, HIDDEN), (w2, INNER)):
        outputs = scales.shape[2]
        repacked = gptq_marlin_moe_repack(values.cuda(), none, inputs, outputs, 4)
        permuted = marlin_utils.marlin_moe_permute_scales(scales.cuda(), inputs, outputs, GROUP)
        points = marlin_utils.moe_awq_to_marlin_zero_points(
            zeros.cuda(), inputs // GROUP, outputs, 4
        )
        marlin.append((repacked, permuted, None if symmetric else points))
    got = fused_marlin_moe(
        x.cuda(),
        *(marlin[0][0], marlin[1][0], marlin[0][1], marlin[1][1]),
        *(gains.cuda(), gains.cuda(), ids.cuda()),
        g_idx1=none,
        g_idx2=none,
        sort_indices1=none,
        sort_indices2=none,
        w1_zeros=marlin[0][2],
        w2_zeros=marlin[1][2],
        num_bits=4,
    )
    full = (whole(w, symmetric=symmetric) for w in (w13, w2))
    expected = routed_experts(x.float(), *full, ids.long(), gains)
    torch.testing.assert_close(got.float().cpu(), expected, rtol=0.03, atol=0.03)
    assert not got[tokens // 2].any()
