"""The oracle: LongCat-Flash-Lite in small plain PyTorch, for tests and for reading.

Owns: the definition of the model, top to bottom (start at model.py). It keeps no KV cache, no batch
and no state: every call takes a whole token sequence and computes everything again.
Leaves to others: speed, serving and tokenizing (the SGLang plugin), and config.json (config.py).
It imports torch and safetensors only, never SGLang or transformers, so that it can judge both.
"""

from sglang_longcat.reference.load import CheckpointError
from sglang_longcat.reference.model import ReferenceModel
from sglang_longcat.reference.ngram import ngram_ids
from sglang_longcat.reference.semantics import Semantics

__all__ = ["CheckpointError", "ReferenceModel", "Semantics", "ngram_ids"]
