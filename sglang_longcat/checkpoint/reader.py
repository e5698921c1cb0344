"""What happens to a checkpoint's tensors on their way into the target model.

SGLang streams (name, tensor) pairs shard by shard, with its own progress bar, into the model's
load_weights. There `CheckpointReader.feed` checks names and shapes, loads the tensors of the N-gram
embedding itself, skips those of the MTP layer, and applies the MLA norm factors, so that loading
twice gives the same weights. SGLang's loader gets the rest (fusing, sharding, quantisation). 4-bit
weights come to it in one order, whatever the checkpoint's (`packed_reader`).
`speculation.draft_reader` reads the MTP layer for the draft, on the same base class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch

from sglang_longcat.checkpoint.check import (
    CheckpointError,
    check_checkpoint,
    compatible,
    stored_names,
)
from sglang_longcat.checkpoint.layout import (
    MTP_PREFIX,
    Shapes,
    as_stored,
    draft_tensors,
    expected_tensors,
    optional_tensors,
    tensor_dtype,
    with_draft_as_stored,
)
from sglang_longcat.checkpoint.packed_reader import PackedReader
from sglang_longcat.config import LongcatConfig, QuantConfig

NGRAM = re.compile(r"model\.ngram_embeddings\.(embedders|post_projs)\.(\d+)\.weight$")
_WORD = "model.embed_tokens.weight"
# SGLang makes one layer of both, and drops one that comes without the other, without a word.
_LATENTS = (".q_a_proj.", ".kv_a_proj_with_mqa.")
# The safetensors names of the dtypes that a checkpoint has.
_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.int64: "I64",
}
_LISTED = 20  # missing tensors that an error names: enough to see the pattern


class _Tables(Protocol):
    def load(self, index: int, weight: torch.Tensor) -> None: ...


class NgramWeights(Protocol):
    """What takes the tensors of the N-gram embedding: `ngram.embedding.NgramEmbedding`."""

    @property
    def tables(self) -> _Tables: ...

    def load_projection(self, index: int, weight: torch.Tensor) -> None: ...


class TensorReader:
    """Checks the tensors of one model against `shapes`, and scales its MLA norms.

    The first load must bring every tensor, a later weight update some. Subclasses decide which
    tensors are the model's, and which part of it takes a tensor.
    """

    def __init__(self, lite: LongcatConfig, path: str | Path, shapes: Shapes) -> None:
        self.lite = lite
        self.path = Path(path)
        self.shapes = as_stored(shapes, lite.quant)
        packed = lite.quant is not None and lite.quant.packed is not None
        self.packed = PackedReader(lite.quant, shapes) if lite.quant and packed else None
        self.loaded_before = False
        self.takes_updates = True

    def convert_on(self, device: torch.device, *, takes_updates: bool) -> None:
        """Where 4-bit weights are reordered that need it, and whether they can be loaded twice."""
        if self.packed is not None:
            self.packed.device, self.takes_updates = device, takes_updates

    def owns(self, name: str) -> bool:
        """Whether the tensor belongs to this model. Others of the checkpoint are skipped."""
        raise NotImplementedError

    def checked(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The model's own tensors. Raises CheckpointError with names, shapes and dtypes, at the end
        for those that are missing. A list, which a weight update from memory brings, is checked as
        a whole before its first tensor is loaded."""
        seen: set[str] = set()
        self._require_update_is_possible()
        if isinstance(weights, list):
            self.check_update(weights)
        for name, tensor in weights:
            if self.owns(name):
                self._check_tensor(name, tensor)
                seen.add(name)
                yield name, tensor
        self._check_complete(seen)

    def as_parameters(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterable[tuple[str, torch.Tensor]]:
        """`checked`, with 4-bit weights in the order of the model's parameters. A list is read as a
        whole before its first tensor is loaded."""
        tensors: Iterable[tuple[str, torch.Tensor]] = self.checked(weights)
        if self.packed is not None:
            tensors = self.packed.read(tensors)
        return list(tensors) if isinstance(weights, list) else tensors

    def _require_update_is_possible(self) -> None:
        if self.loaded_before and not self.takes_updates:
            raise CheckpointError(
                "4-bit weights cannot be updated on a GPU, where they have been repacked for its "
                "kernels. Start a server with the new weights."
            )

    def check_update(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """CheckpointError unless every tensor fits, and all came that are loaded together."""
        _require_both_latents({name for name, _ in weights})
        for name, tensor in weights:
            if self.owns(name):
                self._check_tensor(name, tensor)

    def _check_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """CheckpointError unless the model has a tensor of this name, shape and dtype."""
        optional = self.packed.optional if self.packed else {}
        _check(name, tensor, self.shapes if name in self.shapes else optional, self.lite.quant)

    def scale_latent_norm(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, or sqrt(hidden / rank) times the norm weight of an MLA latent, as SGLang's MLA
        expects it. The product is in fp32, so that only the parameter rounds it."""
        if name.endswith(".q_a_layernorm.weight"):
            return tensor.float() * self.lite.q_scale
        if name.endswith(".kv_a_layernorm.weight"):
            return tensor.float() * self.lite.kv_scale
        return tensor

    def _check_complete(self, seen: set[str]) -> None:
        """CheckpointError if the first load lacks a tensor; a later weight update may."""
        missing = [name for name in self.shapes if name not in seen]
        if missing and not self.loaded_before:
            listed = "\n  ".join(f"{name} {self.shapes[name]}" for name in missing[:_LISTED])
            raise CheckpointError(
                f"{len(missing)} tensors are missing from the checkpoint, the first:\n  {listed}\n"
                "Download the model again; nothing is served with random weights."
            )
        self.loaded_before = True


class CheckpointReader(TensorReader):
    """Reads the tensors of the target model, and skips those of the MTP layer."""

    def __init__(self, lite: LongcatConfig, path: str | Path) -> None:
        super().__init__(lite, path, expected_tensors(lite, mtp=False))

    def check_update(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Checks the draft's tensors too: SGLang loads the target first, then the draft."""
        super().check_update(weights)
        lite = with_draft_as_stored(self.lite, (name for name, _ in weights))
        unquantised = draft_tensors(lite)
        shapes = as_stored(unquantised, lite.quant) | optional_tensors(unquantised, lite.quant)
        for name, tensor in weights:
            if not self.owns(name):
                _check(name, tensor, shapes, lite.quant)

    def owns(self, name: str) -> bool:
        return not name.startswith(MTP_PREFIX)

    def check_files(self, path: str | Path | None = None) -> None:
        """Check the safetensors headers of a local checkpoint before anything is allocated."""
        self._require_update_is_possible()
        if is_local(self.path):
            check_checkpoint(self.path, self.lite)

    def check_update_files(self, path: Path) -> None:
        """The same of a weight update, before anything is overwritten, and the numbers of 4-bit
        layers too: at a start they are checked while they are loaded."""
        self._require_update_is_possible()
        check_checkpoint(path, self.lite)
        if self.packed is not None:
            lite = with_draft_as_stored(self.lite, stored_names(path))
            assert lite.quant is not None
            PackedReader(lite.quant, expected_tensors(lite, mtp=True)).check_numbers(path)

    def feed(
        self, embedding: NgramWeights, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors for SGLang's loader. Raises CheckpointError as `checked`."""
        for name, tensor in self.as_parameters(weights):
            if match := NGRAM.match(name):
                _load_ngram(embedding, match[1], int(match[2]), tensor)
            elif name == _WORD:
                yield "model.embed_tokens.word_embed.weight", tensor
            else:
                yield name, self.scale_latent_norm(name, tensor)


def _check(name: str, tensor: torch.Tensor, shapes: Shapes, quant: QuantConfig | None) -> None:
    """The dtype too: a copy into a parameter casts, and bf16 without scales is then read as FP8."""
    expected, shape = shapes.get(name), tuple(tensor.shape)
    if shape != expected:
        raise CheckpointError(
            f"{name} has shape {shape}, expected {expected or 'no tensor of that name'} from "
            "config.json. Check that config.json belongs to these weights."
        )
    want, dtype = tensor_dtype(name, quant), _DTYPES.get(tensor.dtype, str(tensor.dtype))
    if not compatible(dtype, want):
        raise CheckpointError(
            f"{name} has dtype {dtype}, expected {want}: the server was started with weights as "
            f"{quant or 'bf16'}. Send the tensors that such a checkpoint has."
        )


def _require_both_latents(names: set[str]) -> None:
    for one, other in (_LATENTS, _LATENTS[::-1]):
        for name in names:
            if one in name and (partner := name.replace(one, other)) not in names:
                raise CheckpointError(
                    f"{name} came without {partner}. Both are parts of one layer here: send both "
                    "in one update."
                )


def is_local(path: Path) -> bool:
    """True if `path` is a directory with tensors; it may be a name on a model hub."""
    return any(path.glob("*.safetensors*"))


def _load_ngram(embedding: NgramWeights, kind: str, index: int, tensor: torch.Tensor) -> None:
    load = embedding.tables.load if kind == "embedders" else embedding.load_projection
    load(index, tensor)
