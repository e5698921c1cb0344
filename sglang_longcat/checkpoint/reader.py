"""What happens to a checkpoint's tensors on their way into the model.

SGLang streams (name, tensor) pairs shard by shard, with its own progress bar, into the model's
load_weights. `CheckpointReader.feed` stands in between: it checks names and shapes, takes the
tensors of the N-gram embedding and the MTP block out, and applies the MLA norm factors, so that
loading twice gives the same weights. What is left goes to SGLang's loader (fusing, sharding,
quantisation).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from sglang_longcat.checkpoint.check import CheckpointError, check_checkpoint, check_draft
from sglang_longcat.checkpoint.headers import read_index
from sglang_longcat.checkpoint.layout import (
    MTP_PREFIX,
    Shapes,
    add_scales,
    draft_tensors,
    expected_tensors,
)
from sglang_longcat.config import LongcatConfig

NGRAM = re.compile(r"model\.ngram_embeddings\.(embedders|post_projs)\.(\d+)\.weight$")
_WORD = "model.embed_tokens.weight"
_DRAFT_WORD = MTP_PREFIX + "embed_tokens.weight"
_LISTED = 20


class _Tables(Protocol):
    def load(self, index: int, weight: torch.Tensor) -> None: ...


class NgramWeights(Protocol):
    """Where the tensors of the N-gram embedding go: `ngram.embedding.NgramEmbedding`."""

    @property
    def tables(self) -> _Tables: ...

    def load_projection(self, index: int, weight: torch.Tensor) -> None: ...


class _Reader:
    """What is checked of a model's tensors: `shapes`, once all of them, then what an update brings.

    Subclasses route them; see the module docstring.
    """

    def __init__(self, sizes: LongcatConfig, path: str | Path, shapes: Shapes) -> None:
        self.sizes = sizes
        self.path = Path(path)
        self.shapes = add_scales(shapes, sizes.quant)
        # Other methods than block FP8 name and pack their tensors in their own ways.
        self.layout_known = sizes.quant is None or sizes.quant.is_block_fp8
        self.loaded_before = False

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        expected, found = self.shapes.get(name), tuple(tensor.shape)
        if self.layout_known and found != expected:
            raise CheckpointError(
                f"{name} has shape {found}, expected {expected or 'no tensor of that name'} from "
                "config.json. Check that config.json belongs to these weights."
            )

    def _scaled(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The norm weights of MLA's latents carry sqrt(hidden / rank), as SGLang's MLA expects; in
        fp32, so that the only rounding is the parameter's."""
        if name.endswith(".q_a_layernorm.weight"):
            return tensor.float() * self.sizes.q_scale
        if name.endswith(".kv_a_layernorm.weight"):
            return tensor.float() * self.sizes.kv_scale
        return tensor

    def _check_complete(self, seen: set[str]) -> None:
        """The first load must bring every tensor; a later weight update may bring some."""
        missing = [name for name in self.shapes if name not in seen]
        if missing and not self.loaded_before and self.layout_known:
            listed = "\n  ".join(f"{name} {self.shapes[name]}" for name in missing[:_LISTED])
            raise CheckpointError(
                f"{len(missing)} tensors are missing from the checkpoint, the first:\n  {listed}\n"
                "Download the model again; nothing is served with random weights."
            )
        self.loaded_before = True


class CheckpointReader(_Reader):
    """The tensors of the target model; those of the MTP head pass by."""

    def __init__(self, sizes: LongcatConfig, path: str | Path) -> None:
        super().__init__(sizes, path, expected_tensors(sizes, mtp=False))

    def check_files(self, path: str | Path | None = None) -> None:
        """Read the safetensors headers of a local checkpoint before anything is allocated, or
        overwritten: `path` is that of a weight update."""
        path = self.path if path is None else Path(path)
        if _is_local(path):
            check_checkpoint(path, self.sizes)

    def feed(
        self, embedding: NgramWeights, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what SGLang's loader takes. Raises CheckpointError with names and shapes."""
        seen: set[str] = set()
        for name, tensor in weights:
            if name.startswith(MTP_PREFIX):
                continue
            self._check(name, tensor)
            seen.add(name)
            if match := NGRAM.match(name):
                _load_ngram(embedding, match[1], int(match[2]), tensor)
            elif name == _WORD:
                yield "model.embed_tokens.word_embed.weight", tensor
            else:
                yield name, self._scaled(name, tensor)
        self._check_complete(seen)


class DraftReader(_Reader):
    """The tensors of the MTP head; those of the target pass by."""

    def __init__(self, sizes: LongcatConfig, path: str | Path) -> None:
        super().__init__(sizes, path, draft_tensors(sizes))

    def check_files(self) -> None:
        """Read the headers of a local checkpoint before anything is allocated."""
        if _is_local(self.path):
            check_draft(self.path, self.sizes)

    def feed(
        self,
        load_embedding: Callable[[torch.Tensor], None],
        weights: Iterable[tuple[str, torch.Tensor]],
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what SGLang's loader takes. Raises CheckpointError with names and shapes.

        The first load of a local checkpoint reads these tensors only: `weights` would go through
        all 128 GB for 1.1 GB.
        """
        own = _is_local(self.path) and not self.loaded_before
        seen: set[str] = set()
        for name, tensor in self._own() if own else weights:
            if not name.startswith(MTP_PREFIX):
                continue
            self._check(name, tensor)
            seen.add(name)
            if name == _DRAFT_WORD:
                load_embedding(tensor)
            else:
                yield name, self._scaled(name, tensor)
        self._check_complete(seen)

    def _own(self) -> Iterator[tuple[str, torch.Tensor]]:
        index = read_index(self.path)
        files = {file for name, file in index.items() if name.startswith(MTP_PREFIX)}
        for file in sorted(files or {f.name for f in self.path.glob("*.safetensors")}):
            with safe_open(self.path / file, framework="pt") as shard:
                for name in filter(lambda name: name.startswith(MTP_PREFIX), shard.keys()):
                    yield name, shard.get_tensor(name)


def _is_local(path: Path) -> bool:
    """Whether `path` is a directory with tensors, not a name on a model hub."""
    return any(path.glob("*.safetensors*"))


def _load_ngram(embedding: NgramWeights, kind: str, index: int, tensor: torch.Tensor) -> None:
    load = embedding.tables.load if kind == "embedders" else embedding.load_projection
    load(index, tensor)
