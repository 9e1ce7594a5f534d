"""The log as a reader sees it: any number of readers, in any process, while one writer appends.

Rule 1: nothing here writes.
Rule 2: a record may be gone: redacted, so that its leaf stays; pruned; or in an archive that is not here.
What is in an archive beside the log is read as if it were in the log. Nothing is left out in silence: where
a record cannot be read, `read` raises RecordsGone, and `read_with_gaps` says so.

Longer than other modules: all that is asked of a log is asked of the same rows, nodes and archives.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from sqlite_utils import Database

from eventlog import merkle
from eventlog.archive import ArchiveDamaged
from eventlog.projection import Cell
from eventlog.record import Record, RecordError, decode
from eventlog.schema import APPLICATION_ID, KNOWN_MIGRATIONS, migrations
from eventlog.segments import Life, SegmentError, Span
from eventlog.shelf import Gap, Shelf
from eventlog.snapshot import Snapshot, SnapshotDamaged, check_snapshot

Parameters: TypeAlias = Sequence[Cell] | Mapping[str, Cell]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with records done and records in all."""

DAMAGE: Final = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What a damaged file raises: SQLite's messages quote from it, and Python decodes them strictly."""

RECORDS_PER_PROGRESS = 1000

_ROWS_AT_ONCE = 1000

_EntryRow: TypeAlias = tuple[int, bytes | None, bytes, int, int, str | None, int | None, int, int]


def ignore_progress(done: int, total: int) -> None:
    """Progress for nobody."""


class LogUnreadable(Exception):
    """A file that is no log, or one this version cannot read."""


class RecordsGone(IndexError):
    """Records that were asked for are pruned, or in an archive that is not here or is damaged."""

    def __init__(self, gap: Gap) -> None:
        super().__init__(f"{gap.span}: {gap.why}")
        self.gap = gap


@dataclass(frozen=True, slots=True)
class Head:
    """How many records there are, and the root of the tree over them."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in the log. `data` is None once the record has been redacted; the leaf hash stays."""

    position: int
    data: bytes | None
    leaf: bytes

    @property
    def record(self) -> Record | None:
        """The record, if its bytes are still there. Raises RecordError when they are no record."""
        return None if self.data is None else decode(self.data)


@dataclass(frozen=True, slots=True)
class Columns:
    """What stands beside a record's bytes; `verify` compares the two."""

    type: int
    wall_ns: int
    name: str | None
    incarnation: int | None
    sequence: int
    part: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The first reply to a command."""

    name: str
    incarnation: int
    sequence: int
    reply: bytes


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint kept in the log's file: the size it is over, when it was made, the signed note."""

    number: int
    size: int
    made_ns: int
    note: bytes


class LogReader:
    """A log, read-only. Use as a context manager, or close it."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._shelf = Shelf(path)
        self._life: tuple[int, Life] = (0, Life())

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing log. Raises LogUnreadable."""
        real_path = Path(path).resolve()
        return cls(real_path, _connect_read_only(real_path))

    def close(self) -> None:
        """End the connection; harmless when done twice."""
        self._shelf.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside sees one state of the log, however long it takes, whatever is appended."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @property
    def size(self) -> int:
        """How many records there are, redacted ones included."""
        return self.head().size

    def head(self) -> Head:
        """Size and root after the last append."""
        row = self._connection.execute("SELECT size, root FROM log_head").fetchone()
        if row is None:
            raise LogUnreadable(f"{self.path} has no head")
        return Head(*row)

    @property
    def last_wall_ns(self) -> int | None:
        """The highest wall time since the clock was last set; None in an empty log."""
        row = self._connection.execute("SELECT high_wall_ns FROM log_head").fetchone()
        if row is None:
            raise LogUnreadable(f"{self.path} has no head")
        high_wall_ns: int | None = row[0]
        return high_wall_ns

    @property
    def first_wall_ns(self) -> int | None:
        """The wall time of the first record, also when that is gone; None in an empty log."""
        row = self._connection.execute("SELECT wall_ns FROM log_records WHERE position = 0").fetchone()
        if row is not None:
            return int(row[0])
        segments = self._known_life().segments  # Each `who` asks for it: no archive is opened.
        return segments[0].first_wall_ns if segments else None

    def wall_ns_at(self, position: int) -> int:
        """The wall time of a record. Raises RecordsGone, and IndexError where there is none."""
        if not 0 <= position < self.size:
            raise IndexError(f"no record at position {position}")
        wall_ns = self._wall_ns(position)
        if isinstance(wall_ns, Gap):
            raise RecordsGone(wall_ns)
        return wall_ns

    def life(self, end: int | None = None) -> Life:
        """The closed segments and what was taken out, as records say; one that cannot be is left out.

        `end`: only what the records before it say.
        """
        rows = self._connection.execute(
            "SELECT position, bytes FROM log_records WHERE type < 16 AND type IN (2, 5, 6, 7)"
            " AND bytes IS NOT NULL AND (? IS NULL OR position < ?) ORDER BY position",
            (end, end),
        )
        life = Life()
        for position, data in rows:
            with suppress(RecordError, SegmentError):  # `verify` says what is wrong with it.
                life.apply(position, decode(data))
        return life

    def gone_before(self) -> tuple[int, str]:
        """Up to where records are gone that cannot be read again, and why: (0, "") where none are."""
        life = self._known_life()
        gone = [
            (position + 1, f"the record at position {position} is redacted") for position in life.redacted
        ]
        for segment in life.segments:
            if segment.pruned_at is not None:
                gone.append((segment.span.end, f"{segment.span} are pruned"))
            elif segment.archive is not None:
                try:
                    self._shelf.archive(segment)
                except ArchiveDamaged as error:
                    gone.append(
                        (segment.span.end, f"{segment.span} are in an archive that is no use: {error}")
                    )
        return max(gone, default=(0, ""))

    def read(self, first: int = 0, end: int | None = None) -> Iterator[Entry]:
        """The entries from `first` up to, not including, `end`; up to the present end if that is None.

        Raises RecordsGone where it comes to records that are not to be had.
        """
        for piece in self.read_with_gaps(first, end):
            if isinstance(piece, Gap):
                raise RecordsGone(piece)
            yield piece

    def read_with_gaps(self, first: int = 0, end: int | None = None) -> Iterator[Entry | Gap]:
        """The same for who can do without some: what cannot be read is a Gap, as long as it is."""
        gap: Gap | None = None
        for piece in self.read_with_columns(first, end):
            if gap is not None and isinstance(piece, Gap) and gap.goes_on_with(piece):
                gap = Gap(Span(gap.span.first, piece.span.end), gap.why)
                continue
            if gap is not None:
                yield gap
                gap = None
            if isinstance(piece, Gap):
                gap = piece
            else:
                yield piece[0]
        if gap is not None:
            yield gap

    def read_with_columns(
        self, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[Entry, Columns | None] | Gap]:
        """The same, each entry with the columns beside it; in an archive it has none."""
        end = self.size if end is None else end
        for row in self._rows(first, end):
            if first < row[0]:
                yield from self._fill(first, row[0])
            first = row[0] + 1
            entry = Entry(*row[:3])
            if entry.data is None:
                found = self._shelf.leaf_only(self._known_life(), entry.position, entry.leaf)
                if isinstance(found, Gap):
                    yield found
                    continue
                entry = Entry(entry.position, found.data, found.leaf)
            yield entry, Columns(*row[3:])
        if first < end and self._goes_on_from(end):
            yield from self._fill(first, end)

    def entry(self, position: int) -> Entry:
        """The entry at a position. Raises IndexError where there is none, RecordsGone where it is gone."""
        for entry in self.read(position, position + 1):
            return entry
        raise IndexError(f"no record at position {position}")

    def position_at(self, wall_ns: int) -> int:
        """The size that the log had at a moment, so that `log.read(0, size)` is all that it said then.

        Where the clock was set back, a time can occur twice; the later occurrence counts. Within a stretch
        between two clock steps the answer is exact up to CLOCK_TOLERANCE_NS. Raises RecordsGone for a moment
        within what was pruned.
        """
        steps = self._connection.execute(
            "SELECT position FROM log_records WHERE type = 1 ORDER BY position DESC"
        )
        end = self.size
        for first in (*(row[0] for row in steps), 0):
            found = self._bisect(wall_ns, first, end)
            if found > first:
                return found
            end = first
        return 0

    def nodes(self, level: int, first: int, count: int) -> Sequence[bytes]:
        """The stored hashes of complete subtrees (a merkle.Nodes). Raises IndexError when one is missing."""
        if level == 0:
            statement = "SELECT leaf FROM log_records WHERE position >= ? AND position < ? ORDER BY position"
            rows = self._connection.execute(statement, (first, first + count))
        else:
            statement = (
                "SELECT hash FROM log_nodes WHERE level = ? AND number >= ? AND number < ? ORDER BY number"
            )
            rows = self._connection.execute(statement, (level, first, first + count))
        hashes = [row[0] for row in rows]
        if len(hashes) != count and level == 0:
            pieces = self.read_with_columns(first, first + count)
            known = (it.leaf if isinstance(it, Gap) else it[0].leaf for it in pieces)
            hashes = [leaf for leaf in known if leaf is not None]
        if len(hashes) != count:
            raise IndexError(
                f"of the nodes {first} to {first + count - 1} on level {level}, {len(hashes)} are there"
            )
        return hashes

    def stored_nodes(self, level: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """The hashes stored on a level above the leaves, from number `first` on: (number, hash) in order."""
        rows = self._connection.execute(
            "SELECT number, hash FROM log_nodes WHERE level = ? AND number >= ? ORDER BY number",
            (level, first),
        )
        yield from map(tuple, rows)  # A cursor itself would be closed after the log at Ctrl-C, and can't be.

    def stored_levels(self) -> list[int]:
        """The levels above the leaves that have stored hashes."""
        return [
            row[0] for row in self._connection.execute("SELECT DISTINCT level FROM log_nodes ORDER BY level")
        ]

    def root_at(self, size: int) -> bytes:
        """The root of the tree over the first `size` records, from the stored hashes."""
        return merkle.tree_root(self, size)

    def answer(self, name: str, incarnation: int, sequence: int) -> bytes | None:
        """The first reply to a command, unless it has been forgotten since."""
        row = self._connection.execute(
            "SELECT reply FROM log_answers WHERE name = ? AND incarnation = ? AND sequence = ?",
            (name, incarnation, sequence),
        ).fetchone()
        return None if row is None else bytes(row[0])

    def latest_answers(self) -> list[Answer]:
        """The newest answer of each name, of whatever incarnation; they are never forgotten."""
        rows = self._connection.execute(
            "SELECT name, incarnation, sequence, reply FROM log_answers"
            " WHERE number IN (SELECT max(number) FROM log_answers GROUP BY name) ORDER BY name"
        )
        return [Answer(*row) for row in rows]

    def checkpoints(self) -> list[StoredCheckpoint]:
        """All checkpoints in the log's file, in the order in which they were made."""
        rows = self._connection.execute(
            "SELECT number, size, made_ns, note FROM log_checkpoints ORDER BY number"
        )
        return [StoredCheckpoint(*row) for row in rows]

    def latest_checkpoint(self) -> StoredCheckpoint | None:
        """The checkpoint made last."""
        row = self._connection.execute(
            "SELECT number, size, made_ns, note FROM log_checkpoints ORDER BY number DESC LIMIT 1"
        ).fetchone()
        return None if row is None else StoredCheckpoint(*row)

    def snapshots(self, name: str | None = None) -> list[Snapshot]:
        """The kept snapshots of a name, or all, newest first; not yet believed, see snapshot.py."""
        rows = self._connection.execute(
            "SELECT name, version, size, state, said_at FROM log_snapshots WHERE name = coalesce(?, name)"
            " ORDER BY name, size DESC",
            (name,),
        )
        return [Snapshot(*row) for row in rows]

    def latest_snapshot(self, name: str, version: int) -> Snapshot | None:
        """The newest snapshot of this name and version, held against its record and that against the tree.

        Raises SnapshotDamaged: then the records are still the truth, to be folded from the first one on.
        """
        with self.snapshot():
            for snapshot in self.snapshots(name):
                if snapshot.version == version:
                    self.check_snapshot(snapshot)
                    return snapshot
        return None

    def check_snapshot(self, snapshot: Snapshot) -> None:
        """Hold a kept snapshot against its record and that against the tree. Raises SnapshotDamaged."""
        try:
            entry = self.entry(snapshot.said_at)
            head = self.head()
            check_snapshot(snapshot, entry.record, self.root_at(snapshot.size))
            leaf = merkle.leaf_hash(entry.data or b"")
            path = merkle.inclusion_proof(self, entry.position, head.size)
            merkle.verify_inclusion(leaf, entry.position, head.size, head.root, path)
        except (IndexError, RecordError, merkle.ProofError) as error:
            detail = f"snapshot {snapshot.name} over {snapshot.size} records: its record is damaged: {error}"
            raise SnapshotDamaged(detail) from error

    def note(self, name: str) -> bytes | None:
        """An operational value."""
        row = self._connection.execute("SELECT value FROM log_notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def projection_versions(self) -> dict[str, int]:
        """The projections that have tables here, and of which version these are."""
        return dict(self._connection.execute("SELECT name, version FROM log_projections"))

    def query(self, statement: str, parameters: Parameters = ()) -> list[tuple[Cell, ...]]:
        """The rows of a reading SQL statement, for questions to projections."""
        with self._only_reading():
            return self._connection.execute(statement, parameters).fetchall()

    def query_rows(self, statement: str, parameters: Parameters = ()) -> list[dict[str, Cell]]:
        """The same, each row a dictionary by column name."""
        with self._only_reading():
            cursor = self._connection.execute(statement, parameters)
            names = [description[0] for description in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def connection_for_checks(self) -> sqlite3.Connection:
        """The connection itself, for `verify`, which looks at what no honest reader needs."""
        return self._connection

    def _only_reading(self) -> AbstractContextManager[None]:
        return _query_only(self._connection)

    def _rows(self, first: int, end: int) -> Iterator[_EntryRow]:
        # In runs, each a statement of its own: an open cursor would hold back the WAL's reuse while it is
        # read.
        statement = (
            "SELECT position, bytes, leaf, type, wall_ns, name, incarnation, sequence, part"
            " FROM log_records LEFT JOIN log_sources USING (source)"
            " WHERE position >= ? AND position < ? ORDER BY position LIMIT ?"
        )
        while first < end:
            rows = self._connection.execute(statement, (first, end, _ROWS_AT_ONCE)).fetchall()
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                return
            first = rows[-1][0] + 1

    def _fill(self, first: int, end: int) -> Iterator[tuple[Entry, None] | Gap]:
        for found in self._shelf.fill(self._known_life(), first, end):
            if isinstance(found, Gap):
                yield found
            else:
                position, place = found
                yield Entry(position, place.data, place.leaf), None

    def _goes_on_from(self, position: int) -> bool:
        """Whether there is a record at a position or after it: then what is missing before it is a gap."""
        (row,) = self._connection.execute("SELECT max(position) FROM log_records")
        return row[0] is not None and row[0] >= position

    def _known_life(self) -> Life:
        (row,) = self._connection.execute("SELECT coalesce(max(position), -1) + 1 FROM log_records")
        if self._life[0] != row[0]:
            self._life = row[0], self.life()
        return self._life[1]

    def _bisect(self, wall_ns: int, first: int, end: int) -> int:
        while first < end:
            middle = (first + end) // 2
            (low, low_wall_ns), (high, high_wall_ns) = self._known_around(middle)
            if low_wall_ns > wall_ns:
                end = low
            elif high < end and high_wall_ns <= wall_ns:
                first = high + 1
            elif high <= low + 1:
                return low + 1
            else:
                raise RecordsGone(Gap(Span(low + 1, high), "the moment lies within what is gone"))
        return first

    def _known_around(self, position: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The nearest positions at or before and at or after one whose wall times are known, and these."""
        known = self._wall_ns(position)
        if isinstance(known, int):
            return (position, known), (position, known)
        segment = self._known_life().segment_at(position)
        if segment is None:
            raise RecordsGone(known)
        span = segment.span
        statement = (
            "SELECT position, wall_ns FROM log_records WHERE position >= ? AND position < ? ORDER BY position"
        )
        low = self._connection.execute(f"{statement} DESC LIMIT 1", (span.first, position)).fetchone()
        high = self._connection.execute(f"{statement} LIMIT 1", (position, span.end)).fetchone()
        return low or (span.first, segment.first_wall_ns), high or (span.end - 1, segment.last_wall_ns)

    def _wall_ns(self, position: int) -> int | Gap:
        statement = "SELECT wall_ns FROM log_records WHERE position = ?"
        row = self._connection.execute(statement, (position,)).fetchone()
        if row is not None:
            return int(row[0])
        for piece in self.read_with_gaps(position, position + 1):
            if isinstance(piece, Gap):
                return piece
            if (record := piece.record) is not None:
                return record.wall_ns
        return Gap(Span(position, position + 1), "it is redacted")


@contextmanager
def _query_only(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("PRAGMA query_only = ON")
    try:
        yield
    finally:
        connection.execute("PRAGMA query_only = OFF")


def check_layout(path: Path, connection: sqlite3.Connection) -> None:
    """Raise LogUnreadable unless this is a log of the layout that this version knows."""
    try:
        (row,) = connection.execute("PRAGMA application_id")
        if row[0] != APPLICATION_ID:
            raise LogUnreadable(f"{path} is not an event log")
        database = Database(connection)
        applied = {migration.name for migration in migrations.applied(database)}
        pending = [migration.name for migration in migrations.pending(database)]
    except DAMAGE as error:
        raise LogUnreadable(f"{path} cannot be read: {error}") from error
    if newer := sorted(applied - KNOWN_MIGRATIONS):
        raise LogUnreadable(f"{path} was written by a newer version (it has {', '.join(newer)})")
    if pending:
        lacks = f"was written by an older version (it lacks {', '.join(pending)})"
        raise LogUnreadable(f"{path} {lacks}: the next start of its writer, a tracker, brings it up to date")


def _connect_read_only(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise LogUnreadable(f"{path} does not exist")
    try:
        connection = sqlite3.connect(_read_only_uri(path), uri=True, isolation_level=None)
    except (sqlite3.Error, OSError) as error:
        raise LogUnreadable(f"{path} cannot be opened: {error}") from error
    try:
        check_layout(path, connection)
    except LogUnreadable as error:
        connection.close()
        if (wal := _wal_of(path)).exists() and not os.access(path.parent, os.W_OK):
            where = "in a directory where nothing can be written; copy both to another one"
            raise LogUnreadable(f"{error}: it has a {wal.name}, {where}") from error
        raise
    return connection


def _wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _read_only_uri(path: Path) -> str:
    """How SQLite is to open it: a reader of a WAL file makes two files beside it, where that is possible.

    Where it is not (a read-only mount, a directory of somebody else's) and no WAL is there, the file is all
    there is and nobody writes it through here. With a WAL, records may be in it: SQLite then reads it if it
    can, and says if it cannot.
    """
    wal = _wal_of(path)
    nothing_in_wal = not wal.exists() or wal.stat().st_size == 0
    if nothing_in_wal and not os.access(path.parent, os.W_OK):
        return f"{path.as_uri()}?mode=ro&immutable=1"
    return f"{path.as_uri()}?mode=ro"
