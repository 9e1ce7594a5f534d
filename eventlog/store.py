"""The one writer of a log: records, tree, projections and answers in one transaction.

Rule 1: `append` returns when the batch is on the disk, whole; or it raises and nothing of it is there.
Rule 2: after AppendFailed what is on the disk is unknown to this process (a failed fsync may have written):
it must end.
Rule 3: one writer at a time, by a lock that ends with its process; and the writer checks at each append that
the log is still the one it knows.

SQLite: WAL, synchronous=FULL, STRICT tables. Readers never wait for the writer, nor it for them.

Longer than other modules: opening belongs to it, because Rule 1 begins with what a failed disk left behind.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from sqlite_utils import Database

from eventlog import merkle
from eventlog.disk import sync
from eventlog.kept_tables import TablesUnknown, beginning
from eventlog.lock import LogLocked, WriterLock
from eventlog.projection import Projection
from eventlog.reading import (
    RECORDS_PER_PROGRESS,
    Answer,
    Columns,
    Entry,
    Head,
    LogReader,
    LogUnreadable,
    Progress,
    RecordsGone,
    check_layout,
    ignore_progress,
)
from eventlog.record import CLOCK_STEPPED, Record, clock_went_back, encode
from eventlog.removal import carry_out
from eventlog.schema import APPLICATION_ID, migrations
from eventlog.segments import SEGMENT_TYPES, Removal
from eventlog.snapshot import Snapshot, check_snapshot
from eventlog.tables import ProjectionTables, drop_tables

__all__ = [
    "Answer",
    "AppendFailed",
    "Columns",
    "Entry",
    "Forget",
    "Head",
    "Log",
    "LogBusy",
    "LogLocked",
    "LogReader",
    "LogUnreadable",
    "UnexpectedPosition",
]


_COPY_SIZE: Final = 1 << 20
_WAL_LIMIT: Final = 16 << 20


class AppendFailed(Exception):
    """Nothing of the batch is in the log, as far as this process can know. It must end now."""


class LogBusy(Exception):
    """Another program held SQLite's write lock for too long. Nothing was written; calling again is right."""


class UnexpectedPosition(Exception):
    """The log has grown since the caller looked. Nothing was written."""

    def __init__(self, expected: int, size: int) -> None:
        super().__init__(f"the log has {size} records, expected were {expected}")
        self.expected = expected
        self.size = size


@dataclass(frozen=True, slots=True)
class Forget:
    """A worker has seen all answers up to and including sequence `through`."""

    name: str
    incarnation: int
    through: int


@dataclass(frozen=True, slots=True)
class _Tail:
    """What the next append continues: known to this process only, replaced after each commit."""

    frontier: merkle.Frontier
    root: bytes
    high_wall_ns: int | None
    sources: Mapping[tuple[str, int], int]


class Log(LogReader):
    """A log, open for appending. Use as a context manager, or close it."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, lock: WriterLock, projections: Iterable[Projection]
    ) -> None:
        super().__init__(path, connection)
        self._lock = lock
        self._identity = _identity(path)
        self._wal_identity = _identity(_wal_path(path))
        self._tables = [ProjectionTables(connection, projection) for projection in projections]
        with self._transaction():
            self._tail = self._read_tail()
            self._gone = self._read_gone()
            self._bring_projections_up_to_date()

    @classmethod
    def open(cls, path: str | Path, *, projections: Iterable[Projection] = (), busy_s: float = 5.0) -> Self:
        """Open a log for appending; a missing file is created, mode 0600.

        Projections of a new version, or new here, are folded from the records first. Raises LogLocked and
        LogUnreadable.
        """
        real_path = Path(path).resolve()
        try:
            lock = WriterLock(real_path)
        except OSError as error:
            raise LogUnreadable(f"{real_path} cannot be opened for writing: {error}") from error
        try:
            connection = _connect_for_writing(real_path, busy_s)
        except BaseException:
            lock.release()
            raise
        try:
            return cls(real_path, connection, lock, projections)
        except BaseException as error:
            connection.close()
            lock.release()
            if isinstance(error, sqlite3.Error | UnicodeDecodeError | AppendFailed):
                raise LogUnreadable(f"{real_path} cannot be opened for writing: {error}") from error
            raise

    def close(self) -> None:
        """End the connection and let the next writer in; harmless when done twice."""
        super().close()
        self._lock.release()

    def append(
        self,
        records: Sequence[Record],
        *,
        answers: Iterable[Answer] = (),
        forget_answers: Iterable[Forget] = (),
        notes: Mapping[str, bytes] | None = None,
        snapshot: Snapshot | None = None,
        expected_position: int | None = None,
    ) -> range:
        """Append a batch, and the answers that go out once it is there; returns the positions of what is new.

        A `snapshot` is of the state before this batch, whose last record says so (snapshot.snapshot_fields).

        A record whose source is in the log already is left out, as is an answer to a command that has one;
        so is one that comes before a record of its source that was archived or pruned. A record of the
        removing types (segments.REMOVING) is carried out with it.
        Raises RecordError for values that are no record, UnexpectedPosition, LogBusy (then nothing has
        happened), and AppendFailed, after which the log is closed.
        """
        prepared = [(record, encode(record)) for record in records]
        with self._transaction():
            tail = self._current_tail()
            if expected_position is not None and expected_position != tail.frontier.size:
                raise UnexpectedPosition(expected_position, tail.frontier.size)
            first = tail.frontier.size
            new_tail = self._write_records(tail, prepared)
            self._write_answers(answers, forget_answers)
            self._write_notes(notes or {})
            if snapshot is not None:
                self._write_snapshot(snapshot, new_tail.frontier.size - 1, records)
        self._tail = new_tail  # Only now: until the commit has returned, the old tail is the truth.
        return range(first, new_tail.frontier.size)

    def write_checkpoint(self, note: bytes, size: int, made_ns: int) -> None:
        """Keep a signed checkpoint over the first `size` records. Raises LogBusy, AppendFailed."""
        with self._transaction():
            if size > self._current_tail().frontier.size:
                raise ValueError(f"a checkpoint over {size} records, the log has fewer")
            self._connection.execute(
                "INSERT INTO log_checkpoints (size, made_ns, note) VALUES (?, ?, ?)", (size, made_ns, note)
            )

    def rebuild_projections(self, *, progress: Progress = ignore_progress) -> None:
        """Make all projections' tables again from the records, in one transaction. As `append` for errors."""
        with self._transaction():
            for tables in self._tables:
                drop_tables(self._connection, sorted(tables.projection.tables))
            self._make_projections(self._tables, progress)

    @property
    def free_share(self) -> float:
        """Which part of the file's pages is empty: by so much a whole `give_back` makes it smaller."""
        rows = (self._connection.execute(f"PRAGMA {name}") for name in ("freelist_count", "page_count"))
        (free,), (pages,) = (row.fetchone() for row in rows)
        return float(free / pages)

    def give_back(self, *, whole: bool = False) -> bool:
        """Leave no trace in the file's write-ahead log of what was taken out; False: a reader held it back.

        `whole`: the whole file is written anew too, as small as it can be; needs as much room again. Raises
        LogBusy, AppendFailed.
        """
        with self._transaction():
            self._current_tail()
        try:
            if whole:
                self._connection.execute("VACUUM")
            (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            self._fail()
            raise AppendFailed(f"{self.path}: {error}") from error
        return not busy

    def head(self) -> Head:
        """Size and root after the last append."""
        return Head(self._tail.frontier.size, self._tail.root)

    @property
    def last_wall_ns(self) -> int | None:
        """The highest wall time since the clock was last set; None in an empty log."""
        return self._tail.high_wall_ns

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing: what goes wrong, inside or at the commit, is AppendFailed and closes the log."""
        if not self._lock.still_held():
            self._fail()
            raise AppendFailed(f"{self.path}: it is closed, or its lock file is gone or another's")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise LogBusy(f"{self.path}: another program holds its write lock") from error
            self._fail()
            raise AppendFailed(f"{self.path}: {error}") from error
        try:
            yield
            self._connection.execute("COMMIT")
        except (UnexpectedPosition, LogUnreadable):
            self._connection.execute("ROLLBACK")
            raise
        except Exception as error:
            self._fail()
            raise AppendFailed(f"{self.path}: {error}") from error
        except BaseException:
            self._fail()
            raise

    def _fail(self) -> None:
        # Closing rolls back, also when ROLLBACK itself fails on a broken disk.
        self.close()

    def _current_tail(self) -> _Tail:
        """The tail, if the log is still the one this process knows. Called within the transaction."""
        if _identity(self.path) != self._identity:
            raise AppendFailed("it is gone, or another file is in its place")
        if _identity(_wal_path(self.path)) != self._wal_identity:
            # What SQLite appends now goes to a file without a name, and ends with this process.
            raise AppendFailed("its WAL is gone, or another file is in its place")
        (row,) = self._connection.execute("SELECT size, root FROM log_head")
        if Head(*row) != self.head():
            raise AppendFailed("somebody else has written to it")
        return self._tail

    def _write_records(self, tail: _Tail, prepared: Sequence[tuple[Record, bytes]]) -> _Tail:
        frontier = tail.frontier.copy()
        sources = dict(tail.sources)
        high_wall_ns = tail.high_wall_ns
        batch: set[object] = set()
        for record, data in prepared:
            if record.source in batch:
                raise ValueError(f"{record.source} occurs twice in one batch")
            batch.add(record.source)
            source = self._source_number(sources, record)
            if self._has(source, record):
                continue
            high_wall_ns = _checked_wall_ns(high_wall_ns, record)
            position = frontier.size
            removal = self._said_of_segments(position, record) if record.type in SEGMENT_TYPES else None
            self._write_record(position, record, data, source, frontier)
            if removal is not None:
                carry_out(self._connection, removal)
                self._gone = self._read_gone()
            for tables in self._tables:
                tables.apply(position, record)
        root = frontier.root()
        if frontier.size != tail.frontier.size:
            self._connection.execute(
                "UPDATE log_head SET size = ?, root = ?, high_wall_ns = ?",
                (frontier.size, root, high_wall_ns),
            )
        return _Tail(frontier, root, high_wall_ns, sources)

    def _source_number(self, sources: dict[tuple[str, int], int], record: Record) -> int:
        key = (record.source.name, record.source.incarnation)
        if key not in sources:
            sources[key] = len(sources)
            self._connection.execute("INSERT INTO log_sources VALUES (?, ?, ?)", (sources[key], *key))
        return sources[key]

    def _said_of_segments(self, position: int, record: Record) -> Removal | None:
        """What a record of SEGMENT_TYPES takes out. Raises ValueError for one that cannot be."""
        life = self.life()
        removal = life.apply(position, record)
        if removal is None and life.segments[-1].root != self.root_at(life.closed_end):
            raise ValueError(f"the segment up to {life.closed_end} has another root")
        return removal

    def _read_gone(self) -> dict[int, tuple[int, int]]:
        rows = self._connection.execute("SELECT source, sequence, part FROM log_gone")
        return {source: (sequence, part) for source, sequence, part in rows}

    def _has(self, source: int, record: Record) -> bool:
        last_gone = self._gone.get(source)
        if last_gone is not None and (record.source.sequence, record.source.part) <= last_gone:
            return True
        return (
            self._connection.execute(
                "SELECT 1 FROM log_records WHERE source = ? AND sequence = ? AND part = ?",
                (source, record.source.sequence, record.source.part),
            ).fetchone()
            is not None
        )

    def _write_record(
        self, position: int, record: Record, data: bytes, source: int, frontier: merkle.Frontier
    ) -> None:
        leaf = merkle.leaf_hash(data)
        self._connection.execute(
            "INSERT INTO log_records VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                position,
                record.type,
                record.wall_ns,
                source,
                record.source.sequence,
                record.source.part,
                leaf,
                data,
            ),
        )
        if nodes := frontier.append(leaf):
            self._connection.executemany("INSERT INTO log_nodes VALUES (?, ?, ?)", nodes)

    def _write_answers(self, answers: Iterable[Answer], forget_answers: Iterable[Forget]) -> None:
        self._connection.executemany(
            "INSERT INTO log_answers (name, incarnation, sequence, reply) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (name, incarnation, sequence) DO NOTHING",
            [(answer.name, answer.incarnation, answer.sequence, answer.reply) for answer in answers],
        )
        # The newest of a name stays whatever the worker says: it holds the last sequence over a restart.
        self._connection.executemany(
            "DELETE FROM log_answers"
            " WHERE name = :name AND incarnation = :incarnation AND sequence <= :through"
            " AND number < (SELECT max(number) FROM log_answers WHERE name = :name)",
            [
                {"name": it.name, "incarnation": it.incarnation, "through": it.through}
                for it in forget_answers
            ],
        )

    def _write_notes(self, notes: Mapping[str, bytes]) -> None:
        self._connection.executemany(
            "INSERT INTO log_notes VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            list(notes.items()),
        )

    def _write_snapshot(self, snapshot: Snapshot, said_at: int, records: Sequence[Record]) -> None:
        said = records[-1] if records else None
        check_snapshot(replace(snapshot, said_at=said_at), said, self.root_at(snapshot.size))
        self._connection.execute(
            "INSERT INTO log_snapshots (name, size, version, said_at, state) VALUES (?, ?, ?, ?, ?)",
            (snapshot.name, snapshot.size, snapshot.version, said_at, snapshot.state),
        )
        # Two are kept: the newest, and one in case that is damaged.
        self._connection.execute(
            "DELETE FROM log_snapshots WHERE name = :name AND size NOT IN"
            " (SELECT size FROM log_snapshots WHERE name = :name ORDER BY size DESC LIMIT 2)",
            {"name": snapshot.name},
        )

    def _read_tail(self) -> _Tail:
        ((size, root, high_wall_ns),) = self._connection.execute(
            "SELECT size, root, high_wall_ns FROM log_head"
        )
        try:
            frontier = merkle.frontier_at(self, size)
        except IndexError as error:
            raise LogUnreadable(f"{self.path} is damaged: {error}; `verify` says where") from error
        (row,) = self._connection.execute("SELECT coalesce(max(position), -1) + 1 FROM log_records")
        if frontier.root() != root or row[0] != size:
            raise LogUnreadable(f"{self.path} is damaged: its head is not its tree's; `verify` says where")
        sources = {
            (name, incarnation): source
            for source, name, incarnation in self._connection.execute("SELECT * FROM log_sources")
        }
        return _Tail(frontier, root, high_wall_ns, sources)

    def _bring_projections_up_to_date(self) -> None:
        """Within the opening transaction: fold what is new or of another version."""
        stored = {
            name: (version, json.loads(tables))
            for name, version, tables in self._connection.execute("SELECT * FROM log_projections")
        }
        given = {tables.projection.name for tables in self._tables}
        if missing := sorted(stored.keys() - given):
            # Appending without them would leave them behind the log for good.
            raise LogUnreadable(f"{self.path} has projections that this program lacks: {', '.join(missing)}")
        stale = []
        for tables in self._tables:
            version, names = stored.get(tables.projection.name, (None, []))
            if version != tables.projection.version:
                drop_tables(self._connection, names)
                stale.append(tables)
        try:
            self._make_projections(stale, ignore_progress)
        except (TablesUnknown, RecordsGone) as error:
            what = f"its tables cannot be made again: {error}"
            raise LogUnreadable(f"{self.path}: {what}; go on with the version that wrote them") from error

    def _make_projections(self, stale: Sequence[ProjectionTables], progress: Progress) -> None:
        """Create the tables of these projections and fold the records into them. Within a transaction."""
        if not stale:
            return
        for tables in stale:
            tables.create()
            projection = tables.projection
            self._connection.execute(
                "INSERT INTO log_projections VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET version = excluded.version, tables = excluded.tables",
                (projection.name, projection.version, json.dumps(sorted(projection.tables))),
            )
        begins = [(beginning(self, tables.projection), tables) for tables in stale]
        for begin, tables in begins:
            begin.load(tables)
        first = min(begin.size for begin, _ in begins)
        for entry in self.read(first):
            record = entry.record
            if record is not None:
                for begin, tables in begins:
                    if entry.position >= begin.size:
                        tables.apply(entry.position, record)
            if entry.position % RECORDS_PER_PROGRESS == 0:
                progress(entry.position - first, self.size - first)
        progress(self.size - first, self.size - first)


def _checked_wall_ns(high_wall_ns: int | None, record: Record) -> int:
    """The highest wall time once this record is there. Raises ValueError for a clock set back in silence."""
    if record.type == CLOCK_STEPPED or high_wall_ns is None:
        return record.wall_ns
    if clock_went_back(high_wall_ns, record.wall_ns):
        raise ValueError(
            f"wall time goes from {high_wall_ns} back to {record.wall_ns}, and no CLOCK_STEPPED says so"
        )
    return max(high_wall_ns, record.wall_ns)


def _connect_for_writing(path: Path, busy_s: float) -> sqlite3.Connection:
    _create_file(path)
    try:
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=busy_s
        )
    except sqlite3.Error as error:
        raise LogUnreadable(f"{path} cannot be opened for writing: {error}") from error
    try:
        _prepare_layout(path, connection, busy_s)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error | UnicodeDecodeError):
            raise LogUnreadable(f"{path} cannot be opened for writing: {error}") from error
        raise
    return connection


def _create_file(path: Path) -> None:
    """Make the file if it is missing, and only then open it.

    SQLite's locks on a file that this process has open already (a LogReader) end with the first descriptor
    of it that is closed: a sqlite3 shell would then take the WAL for abandoned, and away with all of it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise LogUnreadable(f"{path} cannot be opened for writing: {error}") from error
    sync(path.parent)


def _prepare_layout(path: Path, connection: sqlite3.Connection, busy_s: float) -> None:
    """Make a fresh file a log; a crash half-way leaves one on which this goes on."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema")
    (application,) = connection.execute("PRAGMA application_id")
    if application[0] != APPLICATION_ID:
        if tables[0] or application[0]:
            raise LogUnreadable(f"{path} is not an event log")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        # SQLite says what it could not do only here; a rollback journal can come back after a crash.
        raise LogUnreadable(f"{path} cannot be opened for writing: its journal mode stays {mode}, not wal")
    connection.execute("PRAGMA synchronous = FULL")
    # After a long reader the WAL is as long as all that was appended meanwhile; the next one to begin is cut.
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
    _settle_wal(path, connection, busy_s)
    connection.execute("PRAGMA secure_delete = ON")  # What is taken out is overwritten, not only unlinked.
    database = Database(connection)
    if migrations.pending(database):
        migrations.apply(database)
    check_layout(path, connection)


def _settle_wal(path: Path, connection: sqlite3.Connection, busy_s: float) -> None:
    """Bring to the disk what is read from the WAL, and then into the database file.

    After a failed sync Linux shows every reader a batch that is not on the disk and never will be. Found in
    the WAL by the next process it would count as written: a repeat of it would be acknowledged, and the
    records appended after it would be lost behind the gap in the next power failure. Written again, the same
    bytes go to the disk; carried over, they do so in blocks that have not failed, unless a reader in a
    transaction prevents it. The WAL comes first: a crash between would put its older pages over the newer
    ones of the database.
    """
    connection.execute("BEGIN IMMEDIATE")  # Nobody else writes to the WAL meanwhile, nor takes it away.
    try:
        wal = os.open(_wal_path(path), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise LogUnreadable(f"{path} cannot be opened for writing: {error}") from error
    try:
        offset = 0
        while data := os.pread(wal, _COPY_SIZE, offset):
            offset += os.pwrite(wal, data, offset)
        os.fsync(wal)
        connection.execute("ROLLBACK")
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute(f"PRAGMA busy_timeout = {round(busy_s * 1000)}")
        os.fsync(wal)
    except OSError as error:
        raise LogUnreadable(f"{path} cannot be opened for writing: {error}") from error
    finally:
        os.close(wal)


def _wal_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
