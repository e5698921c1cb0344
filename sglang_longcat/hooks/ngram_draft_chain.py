"""Let NGRAM speculation propose one chain of drafts, its padding included.

Why: SGLang pads a proposal to its full length with siblings of the first draft. Siblings share one
position, and the N-gram cache keeps only the last token of a position. In a chain the padding
follows the real drafts. The target decides which tokens are accepted in either case.
Upstream: speculative/ngram_worker.py, NGRAMWorker._prepare_draft_tokens, which returns the tokens
[B * N] and who sees whom [B * N * N]. `host/refused_flags.py` asks for proposals without branches
(--speculative-ngram-max-bfs-breadth 1).
Remove when: the padding follows the last draft.
"""

from __future__ import annotations

from typing import Any

TARGET = "sglang.srt.speculative.ngram_worker.NGRAMWorker._prepare_draft_tokens"


def apply(result: Any, worker: Any, *_args: Any, **_kwargs: Any) -> Any:
    import numpy as np

    from sglang_longcat.ngram.state import NgramStateMixin

    if not isinstance(worker.model_runner.model, NgramStateMixin):
        return result
    drafts, sees = result
    window = worker.draft_token_num
    chain = np.tril(np.ones((window, window), dtype=sees.dtype))
    return drafts, np.broadcast_to(chain, (sees.size // chain.size, window, window)).reshape(
        sees.shape
    )
