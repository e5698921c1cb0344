"""The N-gram cache: which tokens came before, per request slot, in step with the scheduler.

`cache.py` owns the ring and the id computation of a forward; `seeds.py` reads predecessors off the
scheduler's requests. Tables and projections live in `layers/ngram_embedding.py`.
"""
