"""What can be wrong with a log, and how it is said."""

from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    FILE = "file"
    LAYOUT = "layout"
    MISSING = "missing"
    BYTES = "bytes"
    LEAF = "leaf"
    COLUMNS = "columns"
    CLOCK = "clock"
    REDACTION = "redaction"
    TREE = "tree"
    HEAD = "head"
    PROJECTION = "projection"
    CHECKPOINT = "checkpoint"
    KEY = "key"
    SNAPSHOT = "snapshot"
    SEGMENT = "segment"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong: at a position, or (None) with the log as a whole."""

    position: int | None
    kind: FaultKind
    detail: str

    def __str__(self) -> str:
        place = "log" if self.position is None else f"position {self.position}"
        return f"{place}: {self.kind}: {self.detail}"
