"""One tool's schema: look a subschema up by its JSON pointer, and test a finite value against it.

Owns: pointers and `$ref`. A pointer is the place of a subschema in the document ("" is the root).
A conjunction is a set of pointers: a value must satisfy all of them. Conjunctions are finite in
number, also in a schema that refers to itself, so the walk over them ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from sglang_longcat.tool_parser.schema.refusal import SchemaRefused

Conjunction = tuple[str, ...]
ANYTHING: Conjunction = ()
NOTHING = "!"  # no pointer of a document: the schema `false`


def conjunction(pointers: Iterable[str]) -> Conjunction:
    return tuple(dict.fromkeys(pointers))


def child(pointer: str, *steps: str | int) -> str:
    escaped = (str(step).replace("~", "~0").replace("/", "~1") for step in steps)
    return "/".join((pointer, *escaped))


def _check(root: object) -> None:
    try:
        Draft202012Validator.check_schema(root)
    except SchemaError as error:
        *path, keyword = error.path or ("parameters",)
        raise SchemaRefused(child("", *path), str(keyword), error.message) from None
    except RecursionError:
        raise SchemaRefused("", "parameters", "it nests too deep") from None


class Document:
    def __init__(self, root: object) -> None:
        self.root = root
        _check(root)
        self._validator = Draft202012Validator(root if isinstance(root, Mapping) else {})

    def at(self, pointer: str) -> Any:
        """The subschema at `pointer`. Raises KeyError if there is none."""
        found: Any = False if pointer == NOTHING else self.root
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            found = found[int(step)] if isinstance(found, list) else found[step]
        return found

    def target(self, pointer: str, reference: str) -> str:
        """The pointer that the `$ref` at `pointer` names."""
        if reference != "#" and not reference.startswith("#/"):
            raise SchemaRefused(pointer, "$ref", f"'{reference}' is not a pointer into this schema")
        target = unquote(reference[1:])
        try:
            found = self.at(target)
        except (KeyError, IndexError, ValueError, TypeError):
            found = None
        if not isinstance(found, bool | Mapping):
            raise SchemaRefused(pointer, "$ref", f"there is no schema at '{reference}'")
        return target

    def accepts(self, pointer: str, value: object) -> bool:
        schema = self.at(pointer)
        try:
            return bool(self._validator.evolve(schema=schema).is_valid(value))
        except RecursionError:
            return False
        except re.error as error:
            raise SchemaRefused(pointer, "pattern", f"it cannot be read ({error})") from None
