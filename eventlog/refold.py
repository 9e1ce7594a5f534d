"""What was made from the records, made again: projections' tables and kept states, compared bit for bit."""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eventlog.faults import Fault, FaultKind
from eventlog.projection import Projection
from eventlog.reading import RECORDS_PER_PROGRESS, LogReader, Progress, ignore_progress
from eventlog.record import Record, RecordError
from eventlog.snapshot import Snapshot, SnapshotDamaged, StateFold, check_snapshot
from eventlog.tables import ProjectionError, ProjectionTables, scratch_tables


@dataclass(frozen=True, slots=True)
class Difference:
    """The first row in which a projection's live table differs from what the records give; None: no row."""

    table: str
    live: object
    folded: object

    def __str__(self) -> str:
        return f"{self.table}: the table has {self.live}, the records give {self.folded}"


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


class Refold:
    """Projections and states folded again while `verify` passes over the records. Close it."""

    def __init__(
        self, reader: LogReader, projections: Iterable[Projection], folds: Iterable[StateFold]
    ) -> None:
        self._reader = reader
        self._scratch = [scratch_tables(projection) for projection in projections]
        self._tables = [tables for _, tables in self._scratch]
        self._folding = list(self._tables)
        self._folds = {(fold.name, fold.version): fold for fold in folds}
        self._snapshots = reader.snapshots() if self._folds else []
        self._wrong_snapshots: set[Snapshot] = set()

    def close(self) -> None:
        """End the temporary databases."""
        for connection, _ in self._scratch:
            connection.close()

    @property
    def projections(self) -> tuple[str, ...]:
        """The names of the projections that are folded."""
        return tuple(tables.projection.name for tables in self._tables)

    def apply(self, position: int, record: Record) -> Iterator[Fault]:
        """Take in the next record."""
        self._compare_states(position)
        for fold in self._folds.values():
            fold.apply(position, record)
        for tables in tuple(self._folding):
            try:
                tables.apply(position, record)
            except ProjectionError as error:
                self._folding.remove(tables)
                yield Fault(position, FaultKind.PROJECTION, str(error))

    def projection_faults(self) -> Iterator[Fault]:
        """After the last record: where the live tables are not what the records give."""
        stored = self._reader.projection_versions()
        for tables in self._tables:
            projection = tables.projection
            version = stored.get(projection.name)
            if version != projection.version:
                detail = f"{projection.name} is of version {version}, not {projection.version}"
                yield Fault(None, FaultKind.PROJECTION, detail)
            elif tables in self._folding:
                for difference in _differences(self._reader, tables):
                    yield Fault(None, FaultKind.PROJECTION, str(difference))

    def snapshot_faults(self, size: int) -> Iterator[Fault]:
        """After the last record: snapshots of which no record speaks, states that the records do not give."""
        self._compare_states(size)
        for snapshot in self._reader.snapshots():
            try:
                check_snapshot(snapshot, self._reader.entry(snapshot.said_at).record)
            except (SnapshotDamaged, IndexError, RecordError) as error:
                yield Fault(snapshot.said_at, FaultKind.SNAPSHOT, str(error))
                continue
            if snapshot in self._wrong_snapshots:
                detail = (
                    f"snapshot {snapshot.name} is not the state that the first {snapshot.size} records give"
                )
                yield Fault(snapshot.said_at, FaultKind.SNAPSHOT, detail)

    def _compare_states(self, size: int) -> None:
        for snapshot in self._snapshots:
            fold = self._folds.get((snapshot.name, snapshot.version))
            if snapshot.size == size and fold is not None and fold.state() != snapshot.state:
                self._wrong_snapshots.add(snapshot)


def _differences(reader: LogReader, folded: ProjectionTables) -> Iterator[Difference]:
    live = ProjectionTables(reader.connection_for_checks(), folded.projection)
    try:
        for table, live_row, folded_row in live.differences(folded):
            yield Difference(table, live_row, folded_row)
    except sqlite3.DatabaseError as error:
        yield Difference(folded.projection.name, f"SQLite says: {error}", None)
