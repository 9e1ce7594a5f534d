"""The log read for the question whether there were ever two holders at once (exclusivity.py).

Rule 1: all records are read, in order, those in archives too. Rule 2: of a record that is gone nothing stored
beside it is believed: not its type, nor its time. What it was about only the tables still say, which were
compared with the records before those went, and `verify` goes on comparing. Rule 3: with the tables' help no
more is shown, only less is doubted: a name or a refusal that was redacted was in no kernel; a binding whose
end is gone had left by the next record that is there.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from eventlog.reading import RECORDS_PER_PROGRESS, Entry, LogReader, Progress, ignore_progress
from eventlog.record import RecordError
from eventlog.segments import Span
from eventlog.shelf import Gap
from tracker.events import (
    NUMBERS,
    BindingInstalled,
    BindingWithdrawn,
    ClockStepped,
    Event,
    PortBound,
    PortUnbound,
    Resource,
    SessionOpened,
    from_record,
)
from tracker.exclusivity import Examination, Unobserved, Verdict
from tracker.holdings import holding_of, in_order
from tracker.outages import outages_within, unlogged
from tracker.shapes import ProtocolError

_LOOKED_AT: Final = frozenset(
    NUMBERS[event]
    for event in (PortBound, PortUnbound, BindingInstalled, BindingWithdrawn, SessionOpened, ClockStepped)
)
_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class _Said:
    """What a record says, at its position and time."""

    position: int
    wall_ns: int
    event: Event


@dataclass(frozen=True, slots=True)
class _Unread:
    """Records that say nothing any more, and why; `wall_ns`: the time of the last one before them."""

    span: Span
    wall_ns: int
    why: str


def examine(
    reader: LogReader, since_ns: int, until_ns: int, *, progress: Progress = ignore_progress
) -> Verdict:
    """What the log shows of [since_ns, until_ns). All records are read: a report can come late."""
    examination = Examination(since_ns, until_ns)
    unread: list[Span] = []
    behind_unread = False
    with reader.snapshot():
        for piece in _pieces(reader, progress):
            if isinstance(piece, _Unread):
                examination.take_unreadable(piece.span.first, piece.wall_ns, piece.why)
                _add(unread, piece.span)
                behind_unread = True
                continue
            if behind_unread:
                _end_what_ended(reader, examination, unread[-1])
                behind_unread = False
            examination.take(piece.position, piece.wall_ns, piece.event)
        if behind_unread:
            _end_what_ended(reader, examination, unread[-1])
        outages = [*outages_within(reader, since_ns, until_ns), *unlogged(reader, since_ns, until_ns)]
        cut = _cut(reader, unread, since_ns, until_ns) if unread else ()
        return examination.verdict(outages, cut)


def _pieces(reader: LogReader, progress: Progress) -> Iterator[_Said | _Unread]:
    size = reader.size
    wall_ns = reader.first_wall_ns or 0
    harmless = _harmless(reader)
    for piece in reader.read_with_columns(0, size):
        if isinstance(piece, Gap):
            yield _Unread(piece.span, wall_ns, f"{piece.span}: {piece.why}")
            continue
        entry, columns = piece
        if entry.data is None or columns is None or columns.type in _LOOKED_AT:
            said = _said(entry, wall_ns)
            if isinstance(said, _Said):
                wall_ns = said.wall_ns
            if said is not None and entry.position not in harmless:
                yield said
        if entry.position % RECORDS_PER_PROGRESS == 0:
            progress(entry.position, size)
    progress(size, size)


def _said(entry: Entry, last_ns: int) -> _Said | _Unread | None:
    """None for a record that says nothing of what was in a kernel."""
    span = Span(entry.position, entry.position + 1)
    try:
        record = entry.record
        if record is None:
            return _Unread(span, last_ns, f"record {entry.position} is redacted")
        return (
            _Said(entry.position, record.wall_ns, from_record(record)) if record.type in _LOOKED_AT else None
        )
    except (RecordError, ProtocolError) as error:
        return _Unread(span, last_ns, f"record {entry.position} is no record: {error}")


def _harmless(reader: LogReader) -> frozenset[int]:
    """Redacted records that the tables know to have been names and refusals."""
    redacted = sorted(reader.life().redacted)
    found: set[int] = set()
    for first in range(0, len(redacted), _AT_ONCE):
        some = redacted[first : first + _AT_ONCE]
        places = ", ".join("?" * len(some))
        for table, column in (("bindings", "named_position"), ("refusals", "position")):
            rows = reader.query(f"SELECT {column} FROM {table} WHERE {column} IN ({places})", some)
            found.update(position for (position,) in rows if isinstance(position, int))
    return frozenset(found)


def _add(unread: list[Span], span: Span) -> None:
    """What follows on each other is one stretch of the log."""
    if unread and unread[-1].end == span.first:
        span = Span(unread.pop().first, span.end)
    unread.append(span)


def _end_what_ended(reader: LogReader, examination: Examination, span: Span) -> None:
    """Bindings of whose coming the records spoke, and whose end is among those that are gone."""
    for binding in examination.present:
        holding = holding_of(reader, binding)
        if holding is not None and holding.unbound_position in span and holding.ended_ns is not None:
            examination.take_end(span.end - 1, binding, holding.ended_ns)


def _cut(reader: LogReader, unread: list[Span], since_ns: int, until_ns: int) -> Iterator[Unobserved]:
    """Bindings of whose coming no record speaks any more, though they were there longer than those."""
    firsts = [span.first for span in unread]
    for holding in in_order(reader, {}, since_ns, until_ns):
        span = unread[max(0, bisect_right(firsts, holding.bound_position) - 1)]
        outlasts = holding.unbound_position is None or holding.unbound_position >= span.end
        if holding.bound_position in span and outlasts:
            resource = Resource(holding.gateway, holding.public_address, holding.service, holding.peer)
            why = f"binding {holding.binding}: the records of its coming are gone"
            ends = (holding.since_ns, holding.ended_ns)
            yield Unobserved("records-gone", holding.gateway, resource, *ends, why, holding.bound_position)
