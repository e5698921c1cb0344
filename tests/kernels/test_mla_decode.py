"""MLA decode against the reference, in one token's view at a time.

Tolerance: outputs are averages of N(0, 1) latents rounded to bf16 once (2**-9 relative), the
weights of keys once before the product; 1e-2 absolute holds both for values up to 2.
"""

from __future__ import annotations

import pytest
import torch

from longcat_kernels.mla_decode import mla_decode, reference
from longcat_kernels.mla_decode import workloads as lite

SMALL = {"heads": 4, "rank": 32, "rope": 16}


def check(inputs: lite.Inputs, width: int = 1) -> torch.Tensor:
    got = mla_decode(*inputs, scale=lite.SCALE, width=width)
    wanted = reference.mla_decode(*inputs, scale=lite.SCALE, width=width)
    torch.testing.assert_close(got.float(), wanted.float(), atol=1e-2, rtol=1e-2)
    return got


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 129, 700])
def test_one_request_of_every_length(device: str, length: int) -> None:
    """Red if a split begins or ends a key early, or an empty one counts."""
    check(lite.make_inputs([length], seed=length, device=device, **SMALL))


@pytest.mark.parametrize("requests", [2, 16, 17, 40])
def test_batches_of_mixed_lengths(device: str, requests: int) -> None:
    lengths = [1 + 37 * i % 211 for i in range(requests)]
    check(lite.make_inputs(lengths, seed=requests, device=device, **SMALL))


@pytest.mark.parametrize("width", [2, 4])
def test_a_draft_sees_the_drafts_before_it_only(device: str, width: int) -> None:
    inputs = lite.make_inputs([width, 70, 129], seed=width, device=device, width=width, **SMALL)
    before = check(inputs, width)
    last = inputs.pages[inputs.requests[1], 69]
    inputs.latents[last] = 7.0  # the last draft of the second request
    after = check(inputs, width)
    rows = torch.arange(3 * width, device=before.device)
    changed = (before != after).flatten(1).any(dim=1)
    assert rows[changed].tolist() == [2 * width - 1]


def test_queries_inside_wider_tensors(device: str) -> None:
    inputs = lite.make_inputs([50, 3], seed=3, device=device, **SMALL)
    wide = torch.cat([inputs.q_nope, inputs.q_pe], dim=-1)
    views = inputs._replace(q_nope=wide[..., :32], q_pe=wide[..., 32:])
    assert torch.equal(check(views), check(inputs))


def test_what_lies_behind_a_request_is_not_read(device: str) -> None:
    """NaN in unused rows and beyond the position: a masked weight of 0 times NaN would be NaN."""
    inputs = lite.make_inputs([66, 5], seed=4, device=device, **SMALL)
    used = torch.cat([inputs.pages[inputs.requests[i], :n] for i, n in enumerate((66, 5))])
    spare = torch.ones(inputs.latents.shape[0], dtype=torch.bool, device=inputs.latents.device)
    spare[used.long()] = False
    inputs.latents[spare] = float("nan")
    assert check(inputs).isfinite().all()


def test_no_tokens(device: str) -> None:
    inputs = lite.make_inputs([], seed=5, device=device, **SMALL)
    assert mla_decode(*inputs, scale=1.0).shape == (0, 4, 32)


def test_a_width_that_does_not_fit_is_refused(device: str) -> None:
    inputs = lite.make_inputs([9, 9], seed=6, device=device, **SMALL)
    with pytest.raises(ValueError, match="expected 6"):
        mla_decode(*inputs, scale=1.0, width=3)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [32, 16])
@pytest.mark.parametrize(("requests", "width"), [(1, 1), (1, 4), (8, 1), (8, 4), (30, 1), (129, 1)])
def test_the_models_sizes(requests: int, width: int, heads: int) -> None:
    lengths = [4096 - 13 * i for i in range(requests)]
    check(lite.make_inputs(lengths, seed=1, device="cuda", width=width, heads=heads), width)


@pytest.mark.gpu
def test_a_captured_step_follows_positions_and_pages() -> None:
    inputs = lite.make_inputs([4096] * 4, seed=0, device="cuda")
    mla_decode(*inputs, scale=lite.SCALE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mla_decode(*inputs, scale=lite.SCALE)
    for seed, lengths in enumerate(([4096, 1, 70, 4000], [64, 65, 128, 2]), start=1):
        fresh = lite.make_inputs([4096] * 4, seed=seed, device="cuda")
        for buffer, value in zip(inputs, fresh, strict=True):
            buffer.copy_(value)
        inputs.positions.copy_(torch.tensor(lengths) - 1)
        graph.replay()
        wanted = reference.mla_decode(*inputs, scale=lite.SCALE)
        torch.testing.assert_close(out.float(), wanted.float(), atol=1e-2, rtol=1e-2)
