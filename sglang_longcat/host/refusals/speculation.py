"""Speculation that the N-gram cache cannot verify, or that SGLang's proposer does not survive.

How long a window of drafts may be, and how small a trie, is decided in
`speculation/window_limits.py`.
"""

from __future__ import annotations

from typing import Any

from sglang_longcat.host.refusals.row import Refusal, on_gpu_only, only, switch
from sglang_longcat.speculation.window_limits import (
    CHAIN_ALGORITHMS,
    MAX_BRANCHES,
    MAX_WINDOW,
    MIN_TRIE_DEPTH,
    min_trie_capacity,
)

_TREE = "a tree of drafts has several tokens at one position, and the N-gram cache holds one"


def _is_ngram(args: Any) -> bool:
    return (args.speculative_algorithm or "").upper() == "NGRAM"


class _SmallTrie(Refusal):
    """Its remedy depends on the depth."""

    def message(self, args: Any) -> str:
        return (
            super()
            .message(args)
            .format(smallest=min_trie_capacity(args.speculative_ngram_max_trie_depth))
        )


ROWS = (
    Refusal(
        flag="--speculative-algorithm {args.speculative_algorithm}",
        is_refused=lambda args: args.speculative_algorithm.upper() not in CHAIN_ALGORITHMS,
        reason="not implemented, or not tested",
        remedy="use NEXTN (or EAGLE, its other name), STANDALONE or NGRAM",
    ),
    Refusal(
        flag="--speculative-ngram-max-bfs-breadth {args.speculative_ngram_max_bfs_breadth}",
        is_refused=lambda args: (
            _is_ngram(args) and args.speculative_ngram_max_bfs_breadth not in (None, MAX_BRANCHES)
        ),
        reason=_TREE,
        remedy=f"set it to {MAX_BRANCHES}",
    ),
    Refusal(
        flag="--speculative-ngram-min-bfs-breadth {args.speculative_ngram_min_bfs_breadth}",
        is_refused=lambda args: (
            _is_ngram(args) and args.speculative_ngram_min_bfs_breadth != MAX_BRANCHES
        ),
        reason="it must lie between 1 and the largest breadth, which is 1",
        remedy=f"set it to {MAX_BRANCHES}",
    ),
    Refusal(
        flag="--speculative-ngram-max-trie-depth {args.speculative_ngram_max_trie_depth}",
        is_refused=lambda args: (
            _is_ngram(args) and args.speculative_ngram_max_trie_depth < MIN_TRIE_DEPTH
        ),
        reason="a match needs a token and the one after it",
        remedy=f"set it to {MIN_TRIE_DEPTH} at least",
    ),
    _SmallTrie(
        flag="--speculative-ngram-capacity {args.speculative_ngram_capacity}",
        is_refused=lambda args: (
            _is_ngram(args)
            and args.speculative_ngram_capacity
            < min_trie_capacity(args.speculative_ngram_max_trie_depth)
        ),
        reason="SGLang's trie must hold its root and one path of "
        "--speculative-ngram-max-trie-depth tokens, or a request ends the server",
        remedy="set it to {smallest} at least",
    ),
    Refusal(
        flag="--speculative-eagle-topk {args.speculative_eagle_topk}",
        is_refused=lambda args: (
            not _is_ngram(args) and args.speculative_eagle_topk not in (None, MAX_BRANCHES)
        ),
        reason=_TREE,
        remedy=f"set it to {MAX_BRANCHES}",
    ),
    Refusal(
        flag="--speculative-num-draft-tokens {args.speculative_num_draft_tokens}",
        is_refused=lambda args: (args.speculative_num_draft_tokens or 0) > MAX_WINDOW,
        reason=f"the N-gram cache verifies at most {MAX_WINDOW} tokens a step",
        remedy="lower it (and --speculative-num-steps)",
    ),
    Refusal(
        flag="--speculative-num-draft-tokens {args.speculative_num_draft_tokens}",
        is_refused=lambda args: (
            args.speculative_num_draft_tokens is not None and args.speculative_num_draft_tokens < 1
        ),
        reason="a window holds one token at least, the decided one",
        remedy="set it to the number of drafts and one more",
    ),
    # eagle_sample calls no processor: only an answer's first token meets it. Under overlap the
    # output that SGLang's own processors read on the host lacks the window before.
    Refusal(
        flag="--enable-custom-logit-processor with --speculative-algorithm",
        is_refused=lambda args: args.enable_custom_logit_processor,
        reason="a processor reads the tokens before it, and a verify window has several tokens "
        "that no processor has seen",
        remedy="leave one of the two out",
    ),
    on_gpu_only("--speculative-use-rejection-sampling"),
    switch("--speculative-adaptive", "not tested"),
    switch("--enable-multi-layer-eagle", "the checkpoint has one MTP layer"),
    only("--decoupled-spec-role", ("null",), "not tested, drafts would come from another server"),
)
