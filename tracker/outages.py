"""When somebody could not look, and which times the log's clock has shown.

Rule 1: a time is what the tracker's clock showed. Between two steps of that clock lies a stretch in which
each time occurs once; a time that no stretch shows, or several, is not silently taken for one of them.
Rule 2: all look-ups are by index, however many outages there have been.

The kinds of outages:
    tracker-down       nobody decided and nobody logged; reports of that time come later, from the outboxes
    worker-lost        nothing was heard of the worker; its kernel went on alone
    worker-stopped     the worker was ended cleanly; its kernel went on alone
    worker-restarted   the worker began anew without having been missed: the outage is at most its lease
    worker-replaced    another worker took over: the same
    records-missed     the worker's reports went to a log that is not this one
    kernel-state-lost  somebody removed what the worker had put into the kernel; the detail says what
    outbox-full        the worker's outbox took no claims: nobody could get a port
    clock-stepped      the tracker's clock jumped
    before-log         the log begins later
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventlog.projection import Cell
from eventlog.reading import LogReader, LogUnreadable
from tracker.projections import SPAN_CLASS_BITS

ALIVE: Final = "alive"
"""The note in which the tracker says until when its silence means nothing."""
_ALIVE_FORMAT: Final = struct.Struct(">QQ")

QUEUE_RULES: Final = "queue rules"
"""Detail of a kernel-state-lost that left the bindings' own state alone."""
WHOLE_TABLE: Final = "table"
"""Detail of one that left nothing, not even what keeps others off."""

_COLUMNS: Final = "kind, gateway, worker, since_ns, until_ns, detail, position"
_CLASSES: Final = range(64 // SPAN_CLASS_BITS)
# An outage of class c that reaches into a time began less than that class's span before it.
_REACHING_INTO: Final = (
    f"SELECT {_COLUMNS} FROM (VALUES {', '.join(f'({c}, :first{c})' for c in _CLASSES)}) AS classes"
    " CROSS JOIN outages ON span_class = classes.column1"
    " AND since_ns > classes.column2 AND since_ns < :until AND until_ns > :since"
    f" UNION ALL SELECT {_COLUMNS} FROM outages WHERE span_class IS NULL"
    " AND (since_ns IS NULL OR since_ns < :until) AND (until_ns IS NULL OR until_ns > :since)"
    " ORDER BY position"
)
_END_OF_TIME_NS: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which somebody could not look; `position` None: no record says so (yet)."""

    kind: str
    gateway: str | None
    worker: str | None
    since_ns: int | None
    until_ns: int | None
    detail: str
    position: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """The records `first` to `end` (not included), while the clock showed `begin_ns` to `finish_ns` (dito).

    `end` and `finish_ns` are None in the last one, as long as the tracker lives.
    """

    first: int
    end: int | None
    begin_ns: int
    finish_ns: int | None

    def shows(self, at_ns: int) -> bool:
        return self.begin_ns <= at_ns and (self.finish_ns is None or at_ns < self.finish_ns)

    def has_happened(self, position: int, event_ns: int, at_ns: int) -> bool:
        """Whether what the log says of `event_ns` at `position` was so by `at_ns` of this stretch."""
        return position < self.first or ((self.end is None or position < self.end) and event_ns <= at_ns)


def alive_note(now_ns: int, valid_ns: int) -> bytes:
    """What the tracker leaves behind: it lives now, and will say so again within `valid_ns`."""
    return _ALIVE_FORMAT.pack(now_ns, now_ns + valid_ns)


def alive_ns(note: bytes | None) -> int | None:
    """When the tracker said for the last time that it lives. Raises LogUnreadable."""
    return None if note is None else _signs(note)[0]


def silence_ns(note: bytes | None) -> int | None:
    """From when on its silence means something. Raises LogUnreadable."""
    return None if note is None else _signs(note)[1] + 1


def _signs(note: bytes) -> tuple[int, int]:
    """When it lived, and until when it had nothing to say: the note is no record, so it may be anybody's."""
    if len(note) == _ALIVE_FORMAT.size:
        now_ns, until_ns = _ALIVE_FORMAT.unpack(note)
        if now_ns <= until_ns < _END_OF_TIME_NS:
            return now_ns, until_ns
    said = f"the log's note {ALIVE!r} is damaged ({note[:16].hex()})"
    raise LogUnreadable(f"{said}: the next start of the tracker writes it anew")


def outages(reader: LogReader, *, at_ns: int | None = None) -> list[Outage]:
    """The times nobody looked, in the order of the log; with `at_ns` those that it falls into."""
    if at_ns is None:
        return outages_within(reader, None, None)
    found = outages_within(reader, at_ns, min(at_ns + 1, _END_OF_TIME_NS))
    return found + list(edges(reader, stretches(reader), at_ns))


def outages_within(reader: LogReader, since_ns: int | None, until_ns: int | None) -> list[Outage]:
    """Those that the log knows to share a moment with [since_ns, until_ns)."""
    since_ns = 0 if since_ns is None else since_ns
    spans = {f"first{c}": max(-1, since_ns - (1 << (SPAN_CLASS_BITS * (c + 1)))) for c in _CLASSES}
    asked = {"since": since_ns, "until": _END_OF_TIME_NS if until_ns is None else until_ns, **spans}
    return [_outage(row) for row in reader.query_rows(_REACHING_INTO, asked)]


def stretches(reader: LogReader) -> list[Stretch]:
    """What the clock has shown, in the order of the log; the last stretch goes on while the tracker lives."""
    first_ns = reader.first_wall_ns
    if first_ns is None:
        return []
    found: list[Stretch] = []
    position, begin_ns = 0, first_ns
    for at, from_ns, to_ns in reader.query(
        "SELECT position, from_ns, to_ns FROM clock_steps ORDER BY position"
    ):
        found.append(Stretch(position, number(at), begin_ns, number(from_ns)))
        position, begin_ns = number(at), number(to_ns)
    finish_ns = silence_ns(reader.note(ALIVE))
    return [*found, Stretch(position, None, begin_ns, finish_ns)]


def showing(found: list[Stretch], at_ns: int) -> list[Stretch]:
    """The stretches that a time belongs to; what comes after the end of all belongs to the last."""
    shown = [stretch for stretch in found if stretch.shows(at_ns)]
    if not shown and found and at_ns >= max(_finish_ns(stretch) for stretch in found):
        return found[-1:]
    return shown


def edges(reader: LogReader, found: list[Stretch], at_ns: int) -> Iterator[Outage]:
    """Before the log's first record, and after the tracker's last sign of life."""
    shown = any(stretch.shows(at_ns) for stretch in found)
    begin_ns = found[0].begin_ns if found else None
    if begin_ns is None or (at_ns < begin_ns and not shown):
        yield Outage("before-log", None, None, None, begin_ns, "the log begins later", None)
    if found and not shown and at_ns >= _finish_ns(found[-1]):
        since_ns = alive_ns(reader.note(ALIVE))
        yield Outage("tracker-down", None, None, since_ns, None, "no sign of life since", None)


def logged_time(reader: LogReader) -> tuple[int, int] | None:
    """From the log's first record to the last sign of life; None in an empty log."""
    found = stretches(reader)
    if not found:
        return None
    signs = (reader.last_wall_ns, alive_ns(reader.note(ALIVE)), found[-1].begin_ns)
    return found[0].begin_ns, max(ns for ns in signs if ns is not None) + 1


def unlogged(reader: LogReader, since_ns: int, until_ns: int) -> list[Outage]:
    """What of [since_ns, until_ns) lies before the log's beginning and after the last sign of life."""
    found = stretches(reader)
    return [outage for at_ns in (since_ns, until_ns - 1) for outage in edges(reader, found, at_ns)]


def _finish_ns(stretch: Stretch) -> int:
    return stretch.begin_ns if stretch.finish_ns is None else max(stretch.begin_ns, stretch.finish_ns)


def _outage(row: Mapping[str, Any]) -> Outage:
    return Outage(**row)


def number(cell: Cell) -> int:
    """A cell that holds one."""
    if not isinstance(cell, int):
        raise TypeError(f"{cell!r} is no number")
    return cell
