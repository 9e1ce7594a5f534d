"""What was taken out of a log, held against the records that say so.

Rule: whatever is not there, a record must say that it went, and which; and what a record says is gone must be
gone.
"""

from collections.abc import Iterator
from contextlib import suppress

from eventlog.faults import Fault, FaultKind
from eventlog.reading import DAMAGE, Entry, LogReader
from eventlog.record import Record
from eventlog.segments import SEGMENT_TYPES, Life, Segment, SegmentError, Span
from eventlog.shelf import Gap


class RemovalCheck:
    """Fed with all entries and gaps in order; then asked for faults. `first`: where `verify` begins."""

    def __init__(self, reader: LogReader, first: int) -> None:
        self._reader = reader
        self._first = first
        self._believed, self._life = Life(), Life()
        with suppress(*DAMAGE):  # `verify` comes to that by itself.
            self._believed, self._life = reader.life(), reader.life(first)
        self._without_bytes: set[int] = set()
        self._in_gaps: list[Gap] = []
        self._said: set[tuple[int, str]] = set()
        self._last_of: dict[tuple[str, int], tuple[int, int]] = {}

    @property
    def gone(self) -> tuple[Gap, ...]:
        """What could not be read, and why."""
        return tuple(self._in_gaps)

    def handle_gap(self, gap: Gap) -> Iterator[Fault]:
        """Take in positions that cannot be read."""
        last = self._in_gaps[-1] if self._in_gaps else None
        if last is not None and (last.span.end, last.why) == (gap.span.first, gap.why):
            self._in_gaps[-1] = Gap(Span(last.span.first, gap.span.end), gap.why)
        else:
            self._in_gaps.append(gap)
        segment = self._believed.segment_at(gap.span.first)
        if segment is None or (segment.archive is None and segment.pruned_at is None):
            yield Fault(gap.span.first, FaultKind.MISSING, f"no records up to position {gap.span.end - 1}")
        elif segment.archive is not None and (segment.number, gap.why) not in self._said:
            self._said.add((segment.number, gap.why))
            yield Fault(gap.span.first, FaultKind.ARCHIVE, gap.why)

    def handle_entry(self, entry: Entry) -> None:
        """Take in an entry of the log."""
        if entry.data is None:
            self._without_bytes.add(entry.position)

    def handle_record(self, position: int, record: Record) -> Iterator[Fault]:
        """Take in a record of the log."""
        segment = self._believed.segment_at(position)
        if segment is not None:
            yield from _time_faults(segment, position, record)
        if segment is not None and segment.archive is not None:
            source = record.source
            key = source.name, source.incarnation
            self._last_of[key] = max(self._last_of.get(key, (0, 0)), (source.sequence, source.part))
        if record.type in SEGMENT_TYPES:
            try:
                self._life.apply(position, record)
            except SegmentError as error:
                yield Fault(position, FaultKind.SEGMENT, str(error))

    def faults(self) -> Iterator[Fault]:
        """After the last record: where what is there and what is said differ."""
        for position in sorted(self._without_bytes - self._life.redacted):
            yield Fault(position, FaultKind.REDACTION, "its bytes are gone, and no record says so")
        gone = (gap.span for gap in self._in_gaps)
        there = {it for it in self._life.redacted if it >= self._first} - self._without_bytes
        for position in sorted(there - {it for span in gone for it in there if it in span}):
            detail = "its bytes are there, but a record says that they are gone"
            yield Fault(position, FaultKind.REDACTION, detail)
        yield from self._left_behind()
        yield from self._removals()
        yield from self._sources()

    def root_faults(self) -> Iterator[Fault]:
        """Segments that do not end at the root that they say; only where the tree is sound."""
        for segment in self._life.segments:
            if segment.closed_at >= self._first and self._reader.root_at(segment.span.end) != segment.root:
                detail = f"the records up to {segment.span.end - 1} have another root than it says"
                yield Fault(segment.closed_at, FaultKind.SEGMENT, detail)

    def _left_behind(self) -> Iterator[Fault]:
        for segment in self._life.segments:
            if segment.archive is None and segment.pruned_at is None:
                continue
            rows = self._reader.connection_for_checks().execute(
                "SELECT position FROM log_records WHERE position >= ? AND position < ? AND type >= 16"
                " AND bytes IS NOT NULL LIMIT 1",
                (max(segment.span.first, self._first), segment.span.end),
            )
            for (position,) in rows:
                detail = "it is there, but a record says that its segment is archived or pruned"
                yield Fault(position, FaultKind.REDACTION, detail)

    def _removals(self) -> Iterator[Fault]:
        rows = self._reader.connection_for_checks().execute(
            "SELECT said_at, type, first, end FROM log_removals WHERE said_at >= ? ORDER BY said_at",
            (self._first,),
        )
        said = [
            (it.said_at, it.type, it.span.first, it.span.end)
            for it in self._life.removals
            if it.said_at >= self._first
        ]
        for position in sorted({row[0] for row in {*rows} ^ {*said}}):
            detail = "what stands in log_removals is not what the record says was taken out"
            yield Fault(position, FaultKind.REDACTION, detail)

    def _sources(self) -> Iterator[Fault]:
        """How far a source's records went must be known exactly, unless some of them cannot be read.

        A row too many, or one too high, would have the writer take new records for repeats.
        """
        taken_out = any(it.archive or it.pruned_at is not None for it in self._believed.segments)
        if taken_out and (self._first or self._in_gaps or self._life.redacted):
            return
        rows: list[tuple[str, int, int, int]] = (
            self._reader.connection_for_checks()
            .execute(
                "SELECT coalesce(name, 'no source'), coalesce(incarnation, source), sequence, part"
                " FROM log_gone LEFT JOIN log_sources USING (source)"
            )
            .fetchall()
        )
        found = {(name, incarnation): (sequence, part) for name, incarnation, sequence, part in rows}
        for (name, incarnation), _ in sorted(found.items() ^ self._last_of.items())[:1]:
            detail = f"log_gone does not hold the last archived record of {name}, incarnation {incarnation}"
            yield Fault(None, FaultKind.REDACTION, detail)


def _time_faults(segment: Segment, position: int, record: Record) -> Iterator[Fault]:
    """Once its records are gone, moments are looked for between the times that a segment says."""
    first, last = segment.span.first, segment.span.end - 1
    for at, said_ns in ((first, segment.first_wall_ns), (last, segment.last_wall_ns)):
        if position == at and record.wall_ns != said_ns:
            detail = f"it says {said_ns} of the record at position {position}, which is of {record.wall_ns}"
            yield Fault(segment.closed_at, FaultKind.SEGMENT, detail)
