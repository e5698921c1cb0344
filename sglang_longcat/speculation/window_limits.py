"""Which drafted tokens the N-gram cache can verify: one chain of at most MAX_WINDOW tokens.

A token's N-gram ids hash the tokens at the positions just before its own, and the cache holds one
token per position. So drafts must form one chain, which fits the ring together with the
predecessors of its first token. Owns these limits, and those of SGLang's proposer NGRAM;
`host/refusals/speculation.py` compares the server's flags with them.
"""

from __future__ import annotations

from sglang_longcat.ngram.cache import RING

CHAIN_ALGORITHMS = ("EAGLE", "NEXTN", "NGRAM", "STANDALONE")  # tested; EAGLE and NEXTN are one
MAX_BRANCHES = 1  # drafts per position: with more, the tokens form a tree
_PREDECESSORS = 3  # n-1, of the 4-grams that the model hashes
MAX_WINDOW = RING - _PREDECESSORS  # tokens of a verify window: 13
MIN_TRIE_DEPTH = 2  # SGLang's ngram.cpp refuses less


def min_trie_capacity(depth: int) -> int:
    """The smallest --speculative-ngram-capacity for --speculative-ngram-max-trie-depth `depth`.

    SGLang's trie inserts one path of at most `depth` tokens at a time, whatever the batch. Before
    it does, Trie::squeeze frees as many nodes as the path may need, from the least recently used
    on. All nodes but the root can be freed, so the trie needs `depth` nodes and the root. With one
    node less, squeeze counts the root as free, takes a node from an empty list, and the process
    ends ("free(): invalid pointer"). (kernels/jit/csrc/ngram_corpus/trie.cpp, 0.5.23)
    """
    return depth + 1
