"""The operators of speculative decoding on the CPU, and that SGLang's own functions reach them."""

from __future__ import annotations

import pytest
import torch

from sglang_longcat.cpu import chain_ops
from tests.harness import run_python

N = 4


def test_operators_are_found_under_sgl_kernels_names() -> None:
    """SGLang's functions, in a process that loaded plugins: chain, verification, slots. Red if a
    schema does not fit the call, or if a compiled CPU library would be shadowed by name only."""
    script = """
        import torch
        from sglang.srt.plugins import load_plugins
        load_plugins()
        from sglang.kernels.ops.speculative import cache_locs, eagle
        from sglang.srt.mem_cache.allocation import assign_req_to_token_pool_func
        from sglang.srt.speculative import eagle_utils as utils

        requests, lengths = torch.tensor([2, 1]), torch.tensor([5, 3])
        mask, positions, index, after, sibling, tokens = utils.build_tree_kernel_efficient(
            torch.tensor([10, 20]), torch.zeros(2, 0).long(), torch.zeros(2, 2).long(),
            torch.tensor([[11, 12], [21, 22]]), lengths, 8, 1, 2, 3,
            tree_mask_mode=utils.TreeMaskMode.QLEN_ONLY)
        assert tokens.tolist() == [10, 11, 12, 20, 21, 22]
        assert positions.tolist() == [5, 6, 7, 3, 4, 5]
        assert index.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert after.tolist() == [[1, 2, -1]] * 2 and sibling.eq(-1).all()
        assert mask.view(2, 3, 3).tolist() == torch.ones(2, 3, 3).tril().bool().tolist()

        predict, rows = torch.zeros(6).int(), torch.full((2, 3), -1).int()
        counts = torch.zeros(2).int()
        utils.verify_tree_greedy_func(
            predict, rows, counts, tokens.view(2, 3), index, after, sibling,
            torch.tensor([[11, 50, 51], [60, 22, 61]]), topk=1)
        assert counts.tolist() == [1, 0]
        assert rows.tolist() == [[0, 1, -1], [3, -1, -1]]
        assert predict.tolist() == [11, 50, 0, 60, 0, 0]
        bonus = torch.zeros(2).int()
        eagle.fill_bonus_tokens_func(predict[rows], counts + 1, bonus, 3, 2)
        assert bonus.tolist() == [50, 60]

        table = torch.zeros(4, 9).int()
        assign_req_to_token_pool_func(
            requests, table, lengths, lengths + 3, torch.arange(70, 76), 2)
        assert table[2].tolist() == [0] * 5 + [70, 71, 72, 0]
        slots = cache_locs.assign_extend_cache_locs_func(
            requests, table, lengths, lengths + 3, 2, 3, "cpu")
        assert slots.tolist() == list(range(70, 76))
        drafts = torch.empty(4).long()
        cache_locs.assign_draft_cache_locs_contiguous_func(
            requests, table, lengths, drafts, 1, 2)
        assert drafts.tolist() == [70, 71, 73, 74]
    """
    run_python(script)


def test_no_tree_is_taken_for_a_chain() -> None:
    empty = torch.empty(0)
    with pytest.raises(NotImplementedError, match="topk 2"):
        chain_ops.build_tree_kernel_efficient(*[empty] * 8, 2, 2, N, 1)
    with pytest.raises(NotImplementedError, match="use topk 1"):
        chain_ops.copy_all_layer_kv_cache(empty, empty, torch.tensor([3]), torch.tensor([4]))


def verify_sampled(
    probs: torch.Tensor, drafts: torch.Tensor, coins: torch.Tensor, last: torch.Tensor
) -> tuple[list[int], list[list[int]]]:
    """Counts of accepted drafts, and the emitted tokens of each request."""
    count, window = coins.shape
    predict, rows = torch.zeros(count * window).int(), torch.full((count, window), -1).int()
    counts, index = torch.zeros(count).int(), torch.arange(count * window).view(count, window)
    decided = torch.zeros(count, 1, dtype=torch.int64)
    chain_ops.tree_speculative_sampling_target_only(
        predict, rows, counts, torch.cat((decided, drafts), 1), index, index, index, coins, last,
        probs, torch.zeros_like(probs),
    )  # fmt: skip
    tokens = predict.tolist()
    emitted = [[tokens[i] for i in row if i >= 0] for row in rows.tolist()]
    return counts.tolist(), emitted


def test_sampled_tokens_have_the_targets_chances() -> None:
    """200,000 windows of one draft. Whatever is drafted, the emitted tokens have the target's
    distribution, and the second token has that of the row after the draft."""
    torch.manual_seed(0)
    count = 200_000
    rows = torch.tensor([[0.1, 0.5, 0.0, 0.4], [0.7, 0.0, 0.2, 0.1]])
    probs = rows.expand(count, 2, 4).clone()
    for draft in range(4):
        drafts = torch.full((count, 1), draft)
        counts, emitted = verify_sampled(probs, drafts, torch.rand(count, 2), torch.rand(count))
        first = torch.tensor([tokens[0] for tokens in emitted]).bincount(minlength=4) / count
        torch.testing.assert_close(first, rows[0], atol=0.005, rtol=0)
        assert sum(counts) / count == pytest.approx(rows[0, draft].item(), abs=0.005)
        second = torch.tensor([tokens[1] for tokens in emitted if len(tokens) > 1])
        assert all(tokens[0] == draft for tokens in emitted if len(tokens) > 1)
        if len(second):
            share = second.bincount(minlength=4) / len(second)
            torch.testing.assert_close(share, rows[1], atol=0.01, rtol=0)


def test_relaxed_acceptance_is_not_taken_for_exact() -> None:
    empty = torch.empty(0)
    with pytest.raises(NotImplementedError, match="leave them at 1"):
        chain_ops.tree_speculative_sampling_target_only(*[empty] * 11, threshold_acc=0.9)


def test_top_k_and_top_p() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]] * 3)
    got = chain_ops.top_k_renorm_prob(probs, torch.tensor([1, 2, 1 << 30], dtype=torch.int32))
    want = torch.tensor([[0, 1.0, 0, 0], [0, 4 / 7, 0, 3 / 7], [0.1, 0.4, 0.2, 0.3]])
    torch.testing.assert_close(got, want)
    got = chain_ops.top_p_renorm_prob(probs, torch.tensor([0.4, 0.71, 1.0]))
    want = torch.tensor([[0, 1.0, 0, 0], [0, 4 / 9, 2 / 9, 3 / 9], [0.1, 0.4, 0.2, 0.3]])
    torch.testing.assert_close(got, want)


def test_accepted_slots_are_packed() -> None:
    taken = torch.zeros(6).long()
    rows = torch.tensor([[0, 1, -1], [3, -1, -1]])
    chain_ops.fill_accept_out_cache_loc(rows, torch.arange(70, 76), taken)
    assert taken.tolist() == [70, 71, 73, 0, 0, 0]
