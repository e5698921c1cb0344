"""Give the model its per-request state once SGLang knows how many request slots there are.

Why: the N-gram cache is indexed by request slot, and the slot pool is built after the model. The
warm-up of our kernels runs here too, and DeepGEMM's kernels are waited for: after loading, before
the first graph is captured.
Upstream: model_runner_components/ngram_embedding_manager.py, NgramEmbeddingManager.from_model,
which allocates the in-tree [slots, context] token table at the same moment.
Remove when: SGLang offers a model callback with the request pool.
"""

from __future__ import annotations

from typing import Any

TARGET = (
    "sglang.srt.model_executor.model_runner_components.ngram_embedding_manager"
    ".NgramEmbeddingManager.from_model"
)


def apply(result: Any, *_args: Any, **kwargs: Any) -> None:
    from sglang_longcat.host import precompile
    from sglang_longcat.host.kernel_warm_up import warm_up_kernels
    from sglang_longcat.ngram import gather_time
    from sglang_longcat.ngram.state import NgramStateMixin

    model, config = kwargs["model"], kwargs["model_config"]
    if isinstance(model, NgramStateMixin):
        model.allocate_cache(
            slots=kwargs["req_to_token_pool"].req_to_token.shape[0], context=config.context_len
        )
        embedding = model.embedding
        precompile.join()
        warm_up_kernels(model.lite, config.dtype, embedding.tables.table, kwargs["device"])
        gather_time.publish(embedding.cache, embedding.tables, vocab=model.lite.vocab_size)
