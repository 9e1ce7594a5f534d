"""Whether a log is what its records say, and if not, where it first is not.

Rule 1: everything is made again from the records' bytes: leaves, tree, head, columns, projections. Nothing
stored is believed because it is stored.
Rule 2: a fault names its position and what is wrong there. What follows from a fault named already is not
named again.

Without a checkpoint kept elsewhere this shows that the file agrees with itself; see checkpoint.py for the
rest.
"""

import sqlite3
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from eventlog import merkle
from eventlog.projection import Projection
from eventlog.reading import (
    RECORDS_PER_PROGRESS,
    Columns,
    Entry,
    Head,
    LogReader,
    LogUnreadable,
    Progress,
    ignore_progress,
)
from eventlog.record import CLOCK_STEPPED, REDACTED, Record, RecordError, clock_went_back, decode
from eventlog.schema import expected_layout, found_layout
from eventlog.tables import ProjectionError, ProjectionTables, scratch_tables

FAULT_LIMIT = 100
"""How many faults a report lists; the others are counted."""

_NO_END = 2**62


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. `faults` in the order of positions, those of no position last."""

    size: int
    root: bytes
    records_checked: int
    faults: tuple[Fault, ...]
    faults_not_listed: int
    projections_checked: tuple[str, ...]
    projections_unknown: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    @property
    def first(self) -> Fault | None:
        """The first fault."""
        return self.faults[0] if self.faults else None


@dataclass(frozen=True, slots=True)
class Difference:
    """The first row in which a projection's live table differs from what the records give."""

    table: str
    live: object
    folded: object

    def __str__(self) -> str:
        return f"{self.table}: the table has {self.live}, the records give {self.folded}"


def verify(
    reader: LogReader, projections: Iterable[Projection] = (), *, progress: Progress = ignore_progress
) -> Report:
    """Check the whole log against its records' bytes, as of one moment."""
    with reader.snapshot():
        check = _Check(reader, projections)
        try:
            return check.run(progress)
        finally:
            check.close()


def compare_projection(
    reader: LogReader, projection: Projection, *, progress: Progress = ignore_progress
) -> list[Difference]:
    """Fold all records into a second set of tables; the first difference of each table from the live one."""
    connection, tables = scratch_tables(projection)
    try:
        with reader.snapshot():
            total = reader.size
            for entry in reader.read():
                record = entry.record
                if record is not None:
                    tables.apply(entry.position, record)
                if entry.position % RECORDS_PER_PROGRESS == 0:
                    progress(entry.position, total)
            progress(total, total)
            return list(_differences(reader, tables))
    finally:
        connection.close()


class _Check:
    """One pass over the records, everything checked on the way."""

    def __init__(self, reader: LogReader, projections: Iterable[Projection]) -> None:
        self._reader = reader
        self._faults: list[Fault] = []
        self._faults_not_listed = 0
        self._bad_positions: list[int] = []
        self._tree: _TreeCheck | None = None
        self._high_wall_ns: int | None = None
        self._next_position = 0
        self._without_bytes: set[int] = set()
        self._said_redacted: set[int] = set()
        self._scratch = [scratch_tables(projection) for projection in projections]
        self._folding = [tables for _, tables in self._scratch]

    def close(self) -> None:
        for connection, _ in self._scratch:
            connection.close()

    def run(self, progress: Progress) -> Report:
        head = Head(0, merkle.EMPTY_ROOT)
        unknown: tuple[str, ...] = ()
        self._check_file()
        with self._damage():
            head = self._reader.head()
            self._tree = _TreeCheck(self._reader)
        checked = self._check_records(head.size, progress)
        self._check_redactions()
        with self._damage():
            self._check_head(checked)
        with self._damage():
            unknown = self._check_projections()
        faults = sorted(self._faults, key=lambda fault: (fault.position is None, fault.position or 0))
        return Report(
            size=head.size,
            root=head.root,
            records_checked=checked,
            faults=tuple(faults),
            faults_not_listed=self._faults_not_listed,
            projections_checked=tuple(tables.projection.name for _, tables in self._scratch),
            projections_unknown=unknown,
        )

    def _fault(self, position: int | None, kind: FaultKind, detail: str) -> None:
        if position is not None:
            insort(self._bad_positions, position)
        if len(self._faults) < FAULT_LIMIT:
            self._faults.append(Fault(position, kind, detail))
        else:
            self._faults_not_listed += 1

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """What cannot be read is a fault, and the next step goes on."""
        try:
            yield
        except (sqlite3.DatabaseError, LogUnreadable) as error:
            self._fault(None, FaultKind.FILE, str(error))

    def _is_bad_within(self, first: int, end: int) -> bool:
        at = bisect_left(self._bad_positions, first)
        return at < len(self._bad_positions) and self._bad_positions[at] < end

    def _check_file(self) -> None:
        connection = self._reader.connection_for_checks()
        try:
            (found,) = connection.execute("PRAGMA integrity_check(1)")
        except sqlite3.DatabaseError as error:
            found = (str(error),)
        if found != ("ok",):
            self._fault(None, FaultKind.FILE, f"SQLite says: {found[0]}")
        expected, there = expected_layout(), found_layout(connection)
        for name in sorted(expected.keys() | there.keys()):
            if expected.get(name) != there.get(name):
                wrong = "missing" if name not in there else "not as made" if name in expected else "not ours"
                self._fault(None, FaultKind.LAYOUT, f"{name} is {wrong}")

    def _check_records(self, total: int, progress: Progress) -> int:
        checked = 0
        try:
            for entry, columns in self._reader.read_with_columns(end=_NO_END):
                self._check_entry(entry, columns)
                checked += 1
                if checked % RECORDS_PER_PROGRESS == 0:
                    progress(checked, total)
        except sqlite3.DatabaseError as error:
            self._fault(self._next_position, FaultKind.FILE, f"SQLite says: {error}")
        progress(checked, max(checked, total))
        return checked

    def _check_entry(self, entry: Entry, columns: Columns) -> None:
        if entry.position != self._next_position:
            # From here on the tree cannot be made again; bytes and columns still can be checked.
            last = entry.position - 1
            self._fault(self._next_position, FaultKind.MISSING, f"no records up to position {last}")
            self._tree = None
        self._next_position = entry.position + 1
        leaf = self._check_bytes(entry, columns)
        if self._tree is not None:
            for first, end, detail in self._tree.append(leaf):
                if not self._is_bad_within(first, end):
                    self._fault(first, FaultKind.TREE, detail)

    def _check_bytes(self, entry: Entry, columns: Columns) -> bytes:
        """Everything about one record but its place in the tree; returns the leaf hash of what is there."""
        if entry.data is None:
            self._without_bytes.add(entry.position)
            return entry.leaf
        leaf = merkle.leaf_hash(entry.data)
        if leaf != entry.leaf:
            self._fault(entry.position, FaultKind.LEAF, "its bytes are not those that were hashed")
        try:
            record = decode(entry.data)
        except RecordError as error:
            self._fault(entry.position, FaultKind.BYTES, f"no record: {error}")
            return leaf
        self._check_columns(entry.position, record, columns)
        self._check_clock(entry.position, record)
        if record.type == REDACTED and record.fields and isinstance(record.fields[0], int):
            self._said_redacted.add(record.fields[0])
        self._fold(entry.position, record)
        return leaf

    def _check_columns(self, position: int, record: Record, columns: Columns) -> None:
        source = record.source
        wanted = Columns(
            record.type, record.wall_ns, source.name, source.incarnation, source.sequence, source.part
        )
        if columns != wanted:
            self._fault(position, FaultKind.COLUMNS, f"beside the bytes stands {columns}, they say {wanted}")

    def _check_clock(self, position: int, record: Record) -> None:
        high = self._high_wall_ns
        if record.type == CLOCK_STEPPED or high is None:
            self._high_wall_ns = record.wall_ns
            return
        if clock_went_back(high, record.wall_ns):
            detail = f"the clock goes back by {high - record.wall_ns} ns, and no record says that it was set"
            self._fault(position, FaultKind.CLOCK, detail)
        self._high_wall_ns = max(high, record.wall_ns)

    def _fold(self, position: int, record: Record) -> None:
        for tables in tuple(self._folding):
            try:
                tables.apply(position, record)
            except ProjectionError as error:
                self._fault(position, FaultKind.PROJECTION, str(error))
                self._folding.remove(tables)

    def _check_redactions(self) -> None:
        for position in sorted(self._without_bytes - self._said_redacted):
            self._fault(position, FaultKind.REDACTION, "its bytes are gone, and no record says so")
        for position in sorted(self._said_redacted - self._without_bytes):
            detail = "its bytes are there, but a record says that they are gone"
            self._fault(position, FaultKind.REDACTION, detail)

    def _check_head(self, checked: int) -> None:
        head = self._reader.head()
        if head.size != checked:
            self._fault(None, FaultKind.HEAD, f"it says {head.size} records, there are {checked}")
        if self._tree is not None:
            for first, detail in self._tree.surplus():
                self._fault(None, FaultKind.TREE, f"{detail} (over positions from {first})")
            if self._tree.root() != head.root and not self._bad_positions:
                self._fault(None, FaultKind.HEAD, "its root is not the root over the records")
        if self._reader.last_wall_ns != self._high_wall_ns and not self._bad_positions:
            self._fault(None, FaultKind.HEAD, "its highest wall time is not the records'")

    def _check_projections(self) -> tuple[str, ...]:
        """Compare what was folded with the live tables; returns the names of projections nobody brought."""
        statement = "SELECT name, version FROM log_projections"
        stored = dict(self._reader.connection_for_checks().execute(statement))
        for _, tables in self._scratch:
            projection = tables.projection
            version = stored.pop(projection.name, None)
            if version != projection.version:
                detail = f"{projection.name} is of version {version}, not {projection.version}"
                self._fault(None, FaultKind.PROJECTION, detail)
            elif tables in self._folding:
                for difference in _differences(self._reader, tables):
                    self._fault(None, FaultKind.PROJECTION, str(difference))
        return tuple(sorted(stored))


def _differences(reader: LogReader, folded: ProjectionTables) -> Iterator[Difference]:
    live = ProjectionTables(reader.connection_for_checks(), folded.projection)
    try:
        for table, live_row, folded_row in live.differences(folded):
            yield Difference(table, live_row, folded_row)
    except sqlite3.DatabaseError as error:
        yield Difference(folded.projection.name, f"SQLite says: {error}", None)
