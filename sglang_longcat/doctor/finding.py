"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def mark(self) -> str:
        return self.upper() if self in (Status.WARNING, Status.ERROR) else str(self)


@dataclass(frozen=True)
class Finding:
    """`text` of a warning or an error ends with what to do."""

    status: Status
    name: str
    text: str

    @classmethod
    def ok(cls, name: str, text: str) -> Finding:
        return cls(Status.OK, name, text)

    @classmethod
    def info(cls, name: str, text: str) -> Finding:
        return cls(Status.INFO, name, text)

    @classmethod
    def warning(cls, name: str, text: str) -> Finding:
        return cls(Status.WARNING, name, text)

    @classmethod
    def error(cls, name: str, text: str) -> Finding:
        return cls(Status.ERROR, name, text)
