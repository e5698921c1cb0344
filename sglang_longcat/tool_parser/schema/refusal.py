"""The error for a schema that the grammar cannot obey. The client gets it as HTTP 400."""

from __future__ import annotations


class SchemaRefused(ValueError):
    """`keyword` at `pointer` (a JSON pointer into the schema) cannot be enforced."""

    def __init__(self, pointer: str, keyword: str, reason: str) -> None:
        super().__init__(f"'{keyword}' at '#{pointer}' cannot be enforced: {reason}")
        self.pointer, self.keyword = pointer, keyword
