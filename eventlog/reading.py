"""The log as a reader sees it: any number of readers, in any process, while one writer appends.

Rule 1: nothing here writes.
Rule 2: a record may be gone while its leaf stays (redacted, pruned), so no reader counts on bytes, and
nobody else knows where they are kept.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from sqlite_utils import Database

from eventlog import merkle
from eventlog.projection import Cell
from eventlog.record import Record, RecordError, decode
from eventlog.schema import APPLICATION_ID, KNOWN_MIGRATIONS, migrations
from eventlog.snapshot import Snapshot, SnapshotDamaged, check_snapshot

Parameters: TypeAlias = Sequence[Cell] | Mapping[str, Cell]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with records done and records in all."""

RECORDS_PER_PROGRESS = 1000

_ROWS_AT_ONCE = 1000

_EntryRow: TypeAlias = tuple[int, bytes | None, bytes, int, int, str | None, int | None, int, int]


def ignore_progress(done: int, total: int) -> None:
    """Progress for nobody."""


class LogUnreadable(Exception):
    """A file that is no log, or one this version cannot read."""


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

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing log. Raises LogUnreadable."""
        real_path = Path(path).resolve()
        return cls(real_path, _connect_read_only(real_path))

    def close(self) -> None:
        """End the connection; harmless when done twice."""
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
        (row,) = self._connection.execute("SELECT high_wall_ns FROM log_head")
        high_wall_ns: int | None = row[0]
        return high_wall_ns

    def read(self, first: int = 0, end: int | None = None) -> Iterator[Entry]:
        """The entries from `first` up to, not including, `end`; up to the present end if that is None."""
        for position, data, leaf, *_ in self._rows(first, end):
            yield Entry(position, data, leaf)

    def read_with_columns(self, first: int = 0, end: int | None = None) -> Iterator[tuple[Entry, Columns]]:
        """The same, each with the columns beside it."""
        for row in self._rows(first, end):
            yield Entry(*row[:3]), Columns(*row[3:])

    def entry(self, position: int) -> Entry:
        """The entry at a position. Raises IndexError where there is none."""
        for entry in self.read(position, position + 1):
            return entry
        raise IndexError(f"no record at position {position}")

    def position_at(self, wall_ns: int) -> int:
        """The size that the log had at a moment, so that `log.read(0, size)` is all that it said then.

        Where the clock was set back, a time can occur twice; the later occurrence counts. Within a stretch
        between two clock steps the answer is exact up to CLOCK_TOLERANCE_NS.
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
        if len(hashes) != count:
            raise IndexError(
                f"of the nodes {first} to {first + count - 1} on level {level}, {len(hashes)} are there"
            )
        return hashes

    def stored_nodes(self, level: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """The hashes stored on a level above the leaves, from number `first` on: (number, hash) in order."""
        yield from self._connection.execute(
            "SELECT number, hash FROM log_nodes WHERE level = ? AND number >= ? ORDER BY number",
            (level, first),
        )

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

    def latest_answer(self, name: str) -> Answer | None:
        """The newest answer of a name, of whatever incarnation; it is never forgotten."""
        row = self._connection.execute(
            "SELECT name, incarnation, sequence, reply FROM log_answers WHERE name = ?"
            " ORDER BY number DESC LIMIT 1",
            (name,),
        ).fetchone()
        return None if row is None else Answer(*row)

    def latest_answers(self) -> list[Answer]:
        """The newest answer of each name."""
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
                    self._check_snapshot(snapshot)
                    return snapshot
        return None

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

    def _check_snapshot(self, snapshot: Snapshot) -> None:
        try:
            entry = self.entry(snapshot.said_at)
            check_snapshot(snapshot, entry.record)
            head = self.head()
            leaf = merkle.leaf_hash(entry.data or b"")
            path = merkle.inclusion_proof(self, entry.position, head.size)
            merkle.verify_inclusion(leaf, entry.position, head.size, head.root, path)
        except (IndexError, RecordError, merkle.ProofError) as error:
            detail = f"snapshot {snapshot.name} over {snapshot.size} records: its record is damaged: {error}"
            raise SnapshotDamaged(detail) from error

    def _only_reading(self) -> AbstractContextManager[None]:
        return _query_only(self._connection)

    def _rows(self, first: int, end: int | None) -> Iterator[_EntryRow]:
        # In runs, each a statement of its own: an open cursor would hold back the WAL's reuse while it is
        # read.
        statement = (
            "SELECT position, bytes, leaf, type, wall_ns, name, incarnation, sequence, part"
            " FROM log_records LEFT JOIN log_sources USING (source)"
            " WHERE position >= ? AND position < ? ORDER BY position LIMIT ?"
        )
        end = self.size if end is None else end
        while first < end:
            rows = self._connection.execute(statement, (first, end, _ROWS_AT_ONCE)).fetchall()
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                return
            first = rows[-1][0] + 1

    def _bisect(self, wall_ns: int, first: int, end: int) -> int:
        while first < end:
            middle = (first + end) // 2
            (row,) = self._connection.execute("SELECT wall_ns FROM log_records WHERE position = ?", (middle,))
            if row[0] <= wall_ns:
                first = middle + 1
            else:
                end = middle
        return first


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
    except sqlite3.DatabaseError as error:
        raise LogUnreadable(f"{path} cannot be read: {error}") from error
    if newer := sorted(applied - KNOWN_MIGRATIONS):
        raise LogUnreadable(f"{path} was written by a newer version (it has {', '.join(newer)})")
    if pending:
        raise LogUnreadable(f"{path} lacks {', '.join(pending)}: it is older; open it once for writing")


def _connect_read_only(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise LogUnreadable(f"{path} does not exist")
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise LogUnreadable(f"{path} cannot be opened: {error}") from error
    try:
        check_layout(path, connection)
    except LogUnreadable:
        connection.close()
        raise
    return connection
