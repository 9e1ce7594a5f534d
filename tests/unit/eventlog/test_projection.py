"""Projections follow the records in the same transaction and can be made again, bit for bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog.projection import Delete, Insert, Projection, Reader, RowChange, TableSpec, Update
from eventlog.record import Record
from eventlog.store import AppendFailed, Log, LogReader, LogUnreadable
from eventlog.tables import ProjectionError
from eventlog.verify import compare_projection
from tests.unit.eventlog.samples import LEFT, NAMED, START_NS, Holders, held, make_record, many_held


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


def rows(reader: LogReader) -> list[tuple[object, ...]]:
    return [tuple(row) for row in reader.query("SELECT port, holder, user_name FROM holders ORDER BY port")]


def test_rows_come_change_and_go_with_the_records(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log, LogReader.open(path) as reader:
        log.append([held(1, 7648, b"a"), held(2, 7649, b"b"), make_record(3, (b"a", "Ann"), kind=NAMED)])
        assert rows(reader) == [(7648, b"a", "Ann"), (7649, b"b", None)]
        log.append([make_record(4, (7649,), kind=LEFT), held(5, 7648, b"c")])
        assert rows(reader) == [(7648, b"c", None)]
        assert compare_projection(reader, Holders()) == []


def test_a_projection_that_contradicts_itself_fails_the_append_and_leaves_nothing(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log:
        log.append([held(1)])
        with pytest.raises(AppendFailed, match="0 rows have this key"):
            log.append([held(2, 7650), make_record(3, (9999,), kind=LEFT)])
    with Log.open(path, projections=[Holders()]) as log:
        assert rows(log) == [(7648, b"\xc0\xa8\x00\x02", None)]
        assert log.size == 1


def test_a_projection_new_to_a_log_is_folded_from_its_records(path: Path) -> None:
    with Log.open(path) as log:
        log.append(many_held(60))
    with Log.open(path, projections=[Holders()]) as log:
        assert len(rows(log)) == 50
        assert compare_projection(log, Holders()) == []


def test_a_projection_of_a_new_version_is_made_again(path: Path) -> None:
    with Log.open(path, projections=[Holders(1)]) as log:
        log.append([held(0)])
        assert log.query("SELECT since_ns FROM holders") == [(START_NS,)]
    with Log.open(path, projections=[Holders(2)]) as log:
        assert log.query("SELECT since_ns FROM holders") == [(START_NS * 2,)]
        assert compare_projection(log, Holders(2)) == []


def test_a_log_is_not_written_without_a_projection_that_it_has(path: Path) -> None:
    Log.open(path, projections=[Holders()]).close()
    with pytest.raises(LogUnreadable, match="holders"):
        Log.open(path)


def test_a_changed_table_is_told_apart_from_the_records(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log:
        log.append([held(1, 7648, b"a"), held(2, 7649, b"b")])
        log._connection.execute("UPDATE holders SET holder = x'ff' WHERE port = 7649")
        log._connection.execute("DELETE FROM changes")
        differences = {difference.table: difference for difference in compare_projection(log, Holders())}
        assert set(differences) == {"holders", "changes"}
        changed = differences["holders"]
        assert (changed.live or {})["holder"] == b"\xff"
        assert (changed.folded or {})["holder"] == b"b"
        assert str(changed) == "holders, port 7649: the table has holder x'ff', the records give holder x'62'"
        assert str(differences["changes"]).startswith(
            "changes: the table has no row, the records give position 0"
        )
        assert differences["changes"].live is None


def test_rebuilding_makes_damaged_tables_right(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(60))
        log._connection.execute("DELETE FROM holders WHERE port < 7020")
        log._connection.execute("DROP TABLE changes")
        log.rebuild_projections(progress=lambda done, total: seen.append((done, total)))
        assert compare_projection(log, Holders()) == []
        assert seen[-1] == (60, 60)


class Broken:
    """A projection whose only row change is given."""

    name = "broken"
    version = 1

    def __init__(self, change: RowChange, table: str = "things") -> None:
        self.change = change
        self.tables = {table: TableSpec({"thing": int, "name": str}, ("thing",), frozenset({"name"}))}

    def rows(self, _position: int, _record: Record, _read: Reader) -> Iterator[RowChange]:
        yield self.change


@pytest.mark.parametrize(
    "change",
    [
        Insert("nothing", {"thing": 1, "name": "x"}),
        Insert("things", {"thing": 1}),
        Insert("things", {"thing": "one", "name": "x"}),
        Update("things", (1,), {"name": "x"}),
        Delete("things", (1,)),
    ],
)
def test_a_row_change_that_cannot_be_carried_out_fails_the_append(path: Path, change: RowChange) -> None:
    with (
        Log.open(path, projections=[Broken(change)]) as log,
        pytest.raises(AppendFailed, match="broken"),
    ):
        log.append([held(1)])


@pytest.mark.parametrize("table", ["log_records", 'x"; DROP TABLE log_records; --', "Things", ""])
def test_a_table_name_that_is_not_plain_or_not_free_is_refused(path: Path, table: str) -> None:
    projection: Projection = Broken(Delete("things", (1,)), table)
    with pytest.raises(ProjectionError):
        Log.open(path, projections=[projection])
    Log.open(path).close()
