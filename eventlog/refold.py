"""What was made from the records, made again: projections' tables and kept states, compared bit for bit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from eventlog.faults import Fault, FaultKind
from eventlog.kept_tables import TablesUnknown, beginning
from eventlog.projection import Cell, Projection, Row
from eventlog.reading import DAMAGE, RECORDS_PER_PROGRESS, LogReader, Progress, ignore_progress
from eventlog.record import Record, RecordError
from eventlog.snapshot import Snapshot, SnapshotDamaged, StateFold, check_snapshot
from eventlog.tables import ProjectionError, ProjectionTables, said_of, scratch_tables


@dataclass(frozen=True, slots=True)
class Difference:
    """The first row in which a projection's live table differs from what the records give; None: no row."""

    table: str
    live: Row | None
    folded: Row | None

    def __str__(self) -> str:
        if self.live is None or self.folded is None:
            return _said(self.table, self.live, self.folded)
        (key, value), *_ = self.live.items()
        live = {name: cell for name, cell in self.live.items() if cell != self.folded[name]}
        folded = {name: self.folded[name] for name in live}
        return _said(f"{self.table}, {key} {_cell_text(value)}", live, folded)


def compare_projection(
    reader: LogReader, projection: Projection, *, progress: Progress = ignore_progress
) -> list[Difference]:
    """Fold the records into a second set of tables; the first difference of each table from the live one.

    All records, those in archives included; where some are gone, those after the tables that were kept then.
    Raises TablesUnknown where there are none, and RecordsGone where an archive turns out to be damaged.
    """
    connection, tables = scratch_tables(projection)
    try:
        with reader.snapshot():
            begin = beginning(reader, projection)
            begin.load(tables)
            total = reader.size - begin.size
            for entry in reader.read(begin.size):
                record = entry.record
                if record is not None:
                    tables.apply(entry.position, record)
                if entry.position % RECORDS_PER_PROGRESS == 0:
                    progress(entry.position - begin.size, total)
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
        self._unfolded: dict[str, str] = {}
        self._folding = dict(self._begun())
        self._snapshots = reader.snapshots()
        kept = {(snapshot.name, snapshot.version) for snapshot in self._snapshots}
        # A state of which nothing was kept has nothing to be compared with, so it is not folded.
        self._folds = {key: fold for fold in folds if (key := (fold.name, fold.version)) in kept}
        self._wrong_snapshots: set[Snapshot] = set()

    def close(self) -> None:
        """End the temporary databases."""
        for connection, _ in self._scratch:
            connection.close()

    @property
    def projections(self) -> tuple[str, ...]:
        """The names of the projections that are folded."""
        names = (tables.projection.name for tables in self._tables)
        return tuple(name for name in names if name not in self._unfolded)

    @property
    def unfolded(self) -> tuple[str, ...]:
        """Why some could not be folded: their records are gone."""
        return tuple(self._unfolded.values())

    def handle_gap(self, end: int, why: str) -> None:
        """Records before `end` cannot be read: whatever would need them is not known from here on."""
        for tables, first in tuple(self._folding.items()):
            if first < end:
                name = tables.projection.name
                self._unfolded[name] = f"{name}: {why}"
                del self._folding[tables]
        for fold in self._folds.values():
            self._unfolded[fold.name] = f"states of {fold.name} from position {end} on: {why}"
        self._folds.clear()

    def _begun(self) -> Iterator[tuple[ProjectionTables, int]]:
        """The tables that can be folded, each with the position from which on its records are wanted."""
        for tables in self._tables:
            try:
                begin = beginning(self._reader, tables.projection)
            except (TablesUnknown, *DAMAGE) as error:
                self._unfolded[tables.projection.name] = str(error)
            else:
                begin.load(tables)
                yield tables, begin.size

    def apply(self, position: int, record: Record) -> Iterator[Fault]:
        """Take in the next record."""
        self._compare_states(position)
        for key, fold in tuple(self._folds.items()):
            try:
                fold.apply(position, record)
            except Exception as error:  # noqa: BLE001 - whatever its owner raises over a forged record
                del self._folds[key]
                detail = f"{fold.name} cannot take in this record: {said_of(error)}"
                yield Fault(position, FaultKind.SNAPSHOT, detail)
        for tables, first in tuple(self._folding.items()):
            if position < first:
                continue
            try:
                tables.apply(position, record)
            except ProjectionError as error:
                del self._folding[tables]
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

    @property
    def snapshot_sizes(self) -> frozenset[int]:
        """Over how many records the kept snapshots are: `snapshot_faults` wants the roots there."""
        return frozenset(snapshot.size for snapshot in self._snapshots)

    def snapshot_faults(self, size: int, roots: Mapping[int, bytes]) -> Iterator[Fault]:
        """After the last record: snapshots of which no record speaks, states that the records do not give.

        `roots`: by size, made from the records; missing where something before was wrong already.
        """
        self._compare_states(size)
        for snapshot in self._snapshots:
            try:
                record = self._reader.entry(snapshot.said_at).record
                check_snapshot(snapshot, record, roots.get(snapshot.size))
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
            names = tuple(folded.projection.tables[table].columns)
            yield Difference(table, _row(names, live_row), _row(names, folded_row))
    except DAMAGE as error:
        yield Difference(folded.projection.name, {"SQLite says": str(error)}, None)


def _row(names: Sequence[str], cells: Sequence[Cell] | None) -> Row | None:
    return None if cells is None else dict(zip(names, cells, strict=True))


def _said(where: str, live: Row | None, folded: Row | None) -> str:
    return f"{where}: the table has {_row_text(live)}, the records give {_row_text(folded)}"


def _row_text(row: Row | None) -> str:
    return "no row" if row is None else ", ".join(f"{name} {_cell_text(it)}" for name, it in row.items())


def _cell_text(cell: Cell) -> str:
    return f"x'{cell.hex()}'" if isinstance(cell, bytes) else repr(cell)
