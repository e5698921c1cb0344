"""The n-gram state of the served model, from one forward to the next, as hooks see it.

Owns: the methods that hooks call, so that hooks need not know the model's class, and the seeds on
their way from the scheduler to the ring. The model is in `models/longcat_flash.py`, the ring in
`cache.py`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sglang_longcat import metrics

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_longcat.checkpoint.reader import CheckpointReader
    from sglang_longcat.config import LongcatConfig
    from sglang_longcat.ngram.embedding import NgramEmbedding
    from sglang_longcat.ngram.seeds import Cells, Seeds

logger = logging.getLogger(__name__)


class NgramStateMixin:
    """Mixed into the target model. Hooks test for it with isinstance, so that they leave every
    other model alone."""

    lite: LongcatConfig
    reader: CheckpointReader
    arrivals: Cells

    @property
    def embedding(self) -> NgramEmbedding:
        raise NotImplementedError

    @property
    def ngram_order(self) -> int:
        assert self.lite.ngram is not None
        return self.lite.ngram.n

    def allocate_cache(self, slots: int, context: int) -> None:
        size = self.embedding.cache.allocate(slots)
        metrics.publish_bytes(part="cache", place="device", size=size)
        logger.info(
            "N-gram cache: %d request slots, %.1f KiB (in-tree token table: %.1f MiB)",
            slots,
            size / 2**10,
            slots * context * 4 / 2**20,
        )

    def note_arrivals(self, cells: Cells) -> None:
        """Keep the seeds of requests that came with their KV, for the next forward."""
        self.arrivals |= cells

    def take_arrivals(self) -> Cells:
        arrivals, self.arrivals = self.arrivals, {}
        return arrivals

    def prepare_for_forward(self, forward_batch: ForwardBatch) -> None:
        """ModelRunner calls this before every forward, eager or replayed, on the forward stream."""
        seeds: Seeds | None = forward_batch.__dict__.get("longcat_seeds")
        self.embedding.cache.seed(seeds)
