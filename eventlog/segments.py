"""Segments of a log, and the records that say what became of them.

Rule 1: a segment is a run of positions, and closed segments follow each other without a gap from position 0
on. Which there are, and which were archived or pruned, only records say: SEGMENT_CLOSED, SEGMENT_ARCHIVED,
SEGMENT_PRUNED, REDACTED.
Rule 2: records of the log's own types (0 to 15) stay for ever: they are few, and say what the rest was.
Rule 3: nothing here reads a clock; now is an argument.
"""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Protocol

from eventlog.merkle import HASH_SIZE
from eventlog.record import (
    REDACTED,
    SEGMENT_ARCHIVED,
    SEGMENT_CLOSED,
    SEGMENT_PRUNED,
    Record,
    Value,
)

REMOVING: Final = frozenset({REDACTED, SEGMENT_ARCHIVED, SEGMENT_PRUNED})
"""Types of records that are carried out as they are appended: what they say is gone then."""

SEGMENT_TYPES: Final = REMOVING | {SEGMENT_CLOSED}

_SECOND_NS: Final = 1_000_000_000


class SegmentError(ValueError):
    """A record that says something of segments that cannot be."""


@dataclass(frozen=True, slots=True)
class Span:
    """Positions from `first` up to, not including, `end`."""

    first: int
    end: int

    def __contains__(self, position: object) -> bool:
        return isinstance(position, int) and self.first <= position < self.end

    def __str__(self) -> str:
        return f"positions {self.first} to {self.end - 1}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A closed segment and what became of it.

    `root`: of the tree over everything up to its end. `archive`: the hash of its archive's header, of the
    newest one; None before and after. `pruned_at`: the position of the record that says so.
    """

    number: int
    span: Span
    root: bytes
    first_wall_ns: int
    last_wall_ns: int
    closed_at: int
    archive: bytes | None = None
    pruned_at: int | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """What a REDACTED, SEGMENT_ARCHIVED or SEGMENT_PRUNED record takes out."""

    span: Span
    said_at: int
    type: int


@dataclass(slots=True)
class Life:
    """All segments of a log and all removals, folded from the records that say them."""

    segments: list[Segment] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    redacted: set[int] = field(default_factory=set)

    @property
    def closed_end(self) -> int:
        """Up to where the log is divided into closed segments."""
        return self.segments[-1].span.end if self.segments else 0

    def segment_at(self, position: int) -> Segment | None:
        """The closed segment that a position lies in."""
        number = bisect_right(self.segments, position, key=lambda it: it.span.first) - 1
        return self.segments[number] if number >= 0 and position in self.segments[number].span else None

    def apply(self, position: int, record: Record) -> Removal | None:
        """Take in the next record of SEGMENT_TYPES; returns what it removes. Raises SegmentError."""
        match record.type, record.fields:
            case 5, (int(first), int(end), bytes(root), int(first_wall_ns), int(last_wall_ns)):
                self._check(first == self.closed_end and first < end <= position, "is no next segment")
                self._check(len(root) == HASH_SIZE, "has no root")
                span = Span(first, end)
                number = len(self.segments)
                self.segments.append(Segment(number, span, root, first_wall_ns, last_wall_ns, position))
                return None
            case 6, (int(first), int(end), bytes(archive)):
                self._check(len(archive) == HASH_SIZE, "has no archive's hash")
                self._change(first, end, archive=archive)
            case 7, (int(first), int(end), str()):
                self._change(first, end, archive=None, pruned_at=position)
            case 2, (int(first), str()):
                end = first + 1
                self._check(0 <= first < position, "redacts what is not before it")
                self._check(first not in self.redacted, "redacts what is redacted already")
                self.redacted.add(first)
            case _:
                raise SegmentError(f"fields that a record of type {record.type} does not have")
        removal = Removal(Span(first, end), position, record.type)
        self.removals.append(removal)
        return removal

    def _change(self, first: int, end: int, *, archive: bytes | None, pruned_at: int | None = None) -> None:
        segment = self.segment_at(first)
        if segment is None or segment.span != Span(first, end) or segment.pruned_at is not None:
            raise SegmentError(f"{Span(first, end)} are no closed segment, or are pruned already")
        self.segments[segment.number] = replace(segment, archive=archive, pruned_at=pruned_at)

    @staticmethod
    def _check(truth: bool, otherwise: str) -> None:
        if not truth:
            raise SegmentError(f"a record that {otherwise}")


def closed_fields(span: Span, root: bytes, first_wall_ns: int, last_wall_ns: int) -> tuple[Value, ...]:
    """The fields of a SEGMENT_CLOSED record; `root`: over the first `span.end` records."""
    return span.first, span.end, root, first_wall_ns, last_wall_ns


def archived_fields(span: Span, archive: bytes) -> tuple[Value, ...]:
    """The fields of a SEGMENT_ARCHIVED record; `archive`: the hash of its file's header."""
    return span.first, span.end, archive


def pruned_fields(span: Span, reason: str) -> tuple[Value, ...]:
    """The fields of a SEGMENT_PRUNED record."""
    return span.first, span.end, reason


def redacted_fields(position: int, reason: str) -> tuple[Value, ...]:
    """The fields of a REDACTED record."""
    return position, reason


@dataclass(frozen=True, slots=True)
class SegmentPolicy:
    """A segment closes with its month (UTC, when that is over), or at so many records, whichever is first."""

    records: int | None = 1_000_000
    monthly: bool = True


class Times(Protocol):
    """What the ends of segments are found by."""

    @property
    def size(self) -> int:
        """How many records there are."""

    def wall_ns_at(self, position: int) -> int:
        """The wall time of a record that is there."""

    def position_at(self, wall_ns: int) -> int:
        """The size that the log had at a moment."""


def due_end(policy: SegmentPolicy, times: Times, first: int, now_ns: int) -> int | None:
    """Where the segment that begins at `first` ends, if it is complete by `now_ns`."""
    if first >= times.size:
        return None
    ends = []
    if policy.records is not None and times.size - first >= policy.records:
        ends.append(first + policy.records)
    if policy.monthly:
        month_end_ns = next_month_ns(times.wall_ns_at(first))
        # Where the clock was set back, the month's end may lie before `first`: then only the size counts.
        if month_end_ns <= now_ns and (end := times.position_at(month_end_ns - 1)) > first:
            ends.append(end)
    return min(ends, default=None)


def next_month_ns(wall_ns: int) -> int:
    """When the month after that of `wall_ns` begins, in UTC."""
    moment = datetime.fromtimestamp(wall_ns // _SECOND_NS, UTC)
    year, month = divmod(moment.year * 12 + moment.month, 12)
    return round(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * _SECOND_NS


def month_begin_ns(text: str) -> int:
    """When a month like 2026-05 begins, in UTC. Raises ValueError."""
    moment = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    return round(moment.timestamp()) * _SECOND_NS
