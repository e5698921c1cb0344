"""What happens to a checkpoint's tensors on their way into the draft model, the MTP layer.

Owns: which of the tensors the draft takes, and reading only those from a local checkpoint. The
checks and the MLA norm factors are those of the target (`checkpoint.reader`), and SGLang's loader
gets what `DraftReader.feed` yields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from sglang_longcat.checkpoint.check import check_draft, stored_names
from sglang_longcat.checkpoint.headers import read_index
from sglang_longcat.checkpoint.layout import MTP_PREFIX, draft_tensors, with_draft_as_stored
from sglang_longcat.checkpoint.reader import TensorReader, is_local
from sglang_longcat.config import LongcatConfig

_WORD = MTP_PREFIX + "embed_tokens.weight"


class DraftReader(TensorReader):
    """Reads the tensors of the MTP layer, and skips those of the target."""

    def __init__(self, lite: LongcatConfig, path: str | Path) -> None:
        lite = with_draft_as_stored(lite, stored_names(path))
        super().__init__(lite, path, draft_tensors(lite))

    def owns(self, name: str) -> bool:
        return name.startswith(MTP_PREFIX)

    def check_files(self) -> None:
        """Check the safetensors headers of a local checkpoint before anything is allocated."""
        if is_local(self.path):
            check_draft(self.path, self.lite)

    def feed(
        self,
        load_embedding: Callable[[torch.Tensor], None],
        weights: Iterable[tuple[str, torch.Tensor]],
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors for SGLang's loader. Raises CheckpointError as `checked`.

        The first load of a local checkpoint reads the draft's tensors alone: `weights` would read
        all 128 GiB for 1.1 GB.
        """
        if is_local(self.path) and not self.loaded_before:
            weights = self._draft_tensors()
        for name, tensor in self.as_parameters(weights):
            if name == _WORD:
                load_embedding(tensor)
            else:
                yield name, self.scale_latent_norm(name, tensor)

    def _draft_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        index = read_index(self.path)
        files = {file for name, file in index.items() if self.owns(name)}
        for file in sorted(files or {f.name for f in self.path.glob("*.safetensors")}):
            with safe_open(self.path / file, framework="pt") as shard:
                for name in filter(self.owns, shard.keys()):
                    yield name, shard.get_tensor(name)
