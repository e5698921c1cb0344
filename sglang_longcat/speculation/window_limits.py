"""Which drafted tokens the N-gram cache can verify: one chain of at most MAX_WINDOW tokens.

A token's N-gram ids hash the tokens at the positions just before its own, and the cache holds one
token per position. So drafts must form one chain, which fits the ring together with the
predecessors of its first token. Owns these limits; `host/refused_flags.py` compares the server's
flags with them.
"""

from __future__ import annotations

from sglang_longcat.ngram.cache import RING

CHAIN_ALGORITHMS = ("EAGLE", "NEXTN", "NGRAM", "STANDALONE")  # tested; EAGLE and NEXTN are one
MAX_BRANCHES = 1  # drafts per position: with more, the tokens form a tree
_PREDECESSORS = 3  # n-1, of the 4-grams that the model hashes
MAX_WINDOW = RING - _PREDECESSORS  # tokens of a verify window: 13
