"""`verify` passes an undamaged log and names the first bad position and what is wrong there."""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog.merkle import leaf_hash
from eventlog.projection import Reader, RowChange
from eventlog.record import CLOCK_STEPPED, Record, encode
from eventlog.retention import redact
from eventlog.schema import expected_layout
from eventlog.store import AppendFailed, Log, LogReader, LogUnreadable
from eventlog.tables import ProjectionError
from eventlog.verify import FaultKind, Report, compare_projection, verify
from tests.unit.eventlog.samples import (
    SECOND_NS,
    START_NS,
    Holders,
    PortsSeen,
    held,
    make_log,
    make_record,
    many_held,
    take_snapshot,
)


def check(path: Path) -> Report:
    with LogReader.open(path) as reader:
        return verify(reader, [Holders()])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_log(tmp_path / "log.sqlite", 300)


@pytest.fixture
def forged(path: Path) -> Iterator[sqlite3.Connection]:
    """The file in the hands of someone who owns it: no trigger holds him up, and he puts them back."""
    connection = sqlite3.connect(path, isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    yield connection
    connection.close()


def put_guards_back(connection: sqlite3.Connection) -> None:
    for statement in expected_layout().values():
        if statement.startswith("CREATE TRIGGER"):
            connection.execute(statement)


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 255, 256, 257, 300])
def test_an_undamaged_log_is_clean(tmp_path: Path, size: int) -> None:
    report = check(make_log(tmp_path / "log.sqlite", size))
    assert report.clean, report.faults
    assert (report.size, report.records_checked) == (size, size)
    assert report.projections_checked == ("holders",)
    assert report.first is None


def test_a_log_is_clean_while_it_is_written(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log, LogReader.open(path) as reader:

        def write(_done: int, _total: int) -> None:
            log.append([], notes={"alive": b"x"})

        log.append(many_held(20, 1000))
        assert verify(reader, [Holders()], progress=write).clean
        assert verify(log, [Holders()]).clean


def test_a_clock_step_that_a_record_tells_of_is_clean(path: Path) -> None:
    with Log.open(path, projections=[Holders()]) as log:
        log.append([make_record(999, kind=CLOCK_STEPPED, wall_ns=12), make_record(1000, wall_ns=13)])
    assert check(path).clean


def test_progress_ends_at_the_number_of_records(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with LogReader.open(path) as reader:
        verify(reader, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (300, 300)


def test_a_projection_that_nobody_brought_is_named(path: Path) -> None:
    with LogReader.open(path) as reader:
        report = verify(reader)
    assert report.clean
    assert report.projections_unknown == ("holders",)


OTHER = encode(held(17, 7017, b"evil"))
CASES: dict[str, tuple[list[tuple[str, tuple[object, ...]]], int | None, FaultKind]] = {
    "a changed record": (
        [("UPDATE log_records SET bytes = ? WHERE position = 17", (OTHER,))],
        17,
        FaultKind.LEAF,
    ),
    "a record changed with its leaf": (
        [("UPDATE log_records SET bytes = ?, leaf = ? WHERE position = 17", (OTHER, leaf_hash(OTHER)))],
        16,
        FaultKind.TREE,
    ),
    "a changed leaf": (
        [("UPDATE log_records SET leaf = zeroblob(32) WHERE position = 17", ())],
        17,
        FaultKind.LEAF,
    ),
    "bytes that are no record": (
        [
            (
                "UPDATE log_records SET bytes = x'c0', leaf = ? WHERE position = 20",
                (leaf_hash(b"\xc0"),),
            )
        ],
        20,
        FaultKind.BYTES,
    ),
    "a record taken out": ([("DELETE FROM log_records WHERE position = 44", ())], 44, FaultKind.MISSING),
    "the first record taken out": (
        [("DELETE FROM log_records WHERE position = 0", ())],
        0,
        FaultKind.MISSING,
    ),
    "the last records taken out": (
        [("DELETE FROM log_records WHERE position >= 290", ())],
        None,
        FaultKind.HEAD,
    ),
    "a record beyond the head": (
        [("UPDATE log_head SET size = 299", ())],
        None,
        FaultKind.HEAD,
    ),
    "a wrong type beside the bytes": (
        [("UPDATE log_records SET type = 17 WHERE position = 30", ())],
        30,
        FaultKind.COLUMNS,
    ),
    "a wrong time beside the bytes": (
        [("UPDATE log_records SET wall_ns = wall_ns + 1 WHERE position = 31", ())],
        31,
        FaultKind.COLUMNS,
    ),
    "a wrong sequence beside the bytes": (
        [("UPDATE log_records SET sequence = 9999 WHERE position = 32", ())],
        32,
        FaultKind.COLUMNS,
    ),
    "a renamed source": ([("UPDATE log_sources SET name = 'gateway-9'", ())], 0, FaultKind.COLUMNS),
    "a source taken out": ([("DELETE FROM log_sources", ())], 0, FaultKind.COLUMNS),
    "bytes taken out": (
        [("UPDATE log_records SET bytes = NULL WHERE position = 50", ())],
        50,
        FaultKind.REDACTION,
    ),
    "a changed node": (
        [("UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 4 AND number = 3", ())],
        48,
        FaultKind.TREE,
    ),
    "a missing node": ([("DELETE FROM log_nodes WHERE level = 4 AND number = 3", ())], 48, FaultKind.TREE),
    "a node too early": (
        [("INSERT INTO log_nodes VALUES (4, 18, zeroblob(32))", ())],
        None,
        FaultKind.TREE,
    ),
    "a changed root": ([("UPDATE log_head SET root = zeroblob(32)", ())], None, FaultKind.HEAD),
    "the head gone": ([("DELETE FROM log_head", ())], None, FaultKind.FILE),
    "a changed highest time": ([("UPDATE log_head SET high_wall_ns = 5", ())], None, FaultKind.HEAD),
    "a changed projection": (
        [("UPDATE holders SET holder = x'00' WHERE port = 7005", ())],
        None,
        FaultKind.PROJECTION,
    ),
    "a row too many in a projection": (
        [("INSERT INTO changes VALUES (400, 7)", ())],
        None,
        FaultKind.PROJECTION,
    ),
    "a projection's version": ([("UPDATE log_projections SET version = 3", ())], None, FaultKind.PROJECTION),
    "a projection's table gone": ([("DROP TABLE changes", ())], None, FaultKind.LAYOUT),
    "a view in a table's place": (
        [
            ("ALTER TABLE holders RENAME TO others", ()),
            ("CREATE VIEW holders AS SELECT * FROM others WHERE date() < '2100-01-01'", ()),
        ],
        None,
        FaultKind.LAYOUT,
    ),
    "a projection's index gone": ([("DROP INDEX idx_holders_holder", ())], None, FaultKind.LAYOUT),
    "an index that refuses what will come": (
        [("CREATE UNIQUE INDEX sly ON holders (holder) WHERE port = 1", ())],
        None,
        FaultKind.LAYOUT,
    ),
    "tables that an upgrade would take away": (
        [("""UPDATE log_projections SET tables = '["log_records"]'""", ())],
        None,
        FaultKind.LAYOUT,
    ),
    "a record before the first one": (
        [
            (
                "INSERT INTO log_records SELECT -1, type, wall_ns, source, 9999, part, leaf, bytes"
                " FROM log_records WHERE position = 17",
                (),
            )
        ],
        None,
        FaultKind.LAYOUT,
    ),
    "records that are only said to have gone": (
        [("INSERT INTO log_gone VALUES (0, 9999, 0)", ())],
        None,
        FaultKind.REDACTION,
    ),
    "a source that had no records and is said to have gone": (
        [("INSERT INTO log_gone VALUES (7, 9999, 0)", ())],
        None,
        FaultKind.REDACTION,
    ),
    "a number taken from the next source": (
        [("INSERT INTO log_sources VALUES (7, 'x', 1)", ())],
        None,
        FaultKind.LAYOUT,
    ),
    "a second head": (
        [("INSERT INTO log_head SELECT 2, 0, root, 0 FROM log_head", ())],
        None,
        FaultKind.HEAD,
    ),
    "an index gone": (
        [("DROP INDEX idx_log_records_source_sequence_part", ())],
        None,
        FaultKind.LAYOUT,
    ),
    "a trigger on a projection": (
        [("CREATE TRIGGER sly AFTER INSERT ON holders BEGIN DELETE FROM changes; END", ())],
        None,
        FaultKind.LAYOUT,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_where_it_is(path: Path, forged: sqlite3.Connection, case: str) -> None:
    statements, position, kind = CASES[case]
    for statement, parameters in statements:
        forged.execute(statement, parameters)
    put_guards_back(forged)
    report = check(path)
    assert report.first is not None
    assert (report.first.position, report.first.kind) == (position, kind), report.faults


def test_one_changed_record_is_one_fault_in_the_tree(path: Path, forged: sqlite3.Connection) -> None:
    forged.execute("UPDATE log_records SET bytes = ? WHERE position = 17", (OTHER,))
    put_guards_back(forged)
    kinds = [fault.kind for fault in check(path).faults]
    assert kinds.count(FaultKind.LEAF) == 1
    assert FaultKind.TREE not in kinds


def test_missing_triggers_are_named(path: Path, forged: sqlite3.Connection) -> None:
    faults = check(path).faults
    assert len(faults) == 14
    assert {fault.kind for fault in faults} == {FaultKind.LAYOUT}


def test_more_faults_than_are_listed_are_counted(path: Path, forged: sqlite3.Connection) -> None:
    forged.execute("UPDATE log_records SET type = 99")
    put_guards_back(forged)
    report = check(path)
    assert len(report.faults) == 100
    assert report.faults_not_listed == 200
    assert not report.clean


def test_a_clock_set_back_in_silence_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with Log.open(path, projections=[Holders()]) as log:
        log.append([held(10), held(11)])
        # What an append without the check would have written: honest bytes, an honest tree, a false time.
        log._tail = type(log._tail)(log._tail.frontier, log._tail.root, None, log._tail.sources)
        log.append([make_record(12, wall_ns=START_NS)])
        log._connection.execute("UPDATE log_head SET high_wall_ns = ?", (START_NS + 11 * 10**9,))
    report = check(path)
    assert report.first is not None
    assert (report.first.position, report.first.kind) == (2, FaultKind.CLOCK)


@pytest.mark.parametrize("seed", range(12))
def test_a_page_of_noise_is_found_and_nothing_breaks(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    page = chance.randrange(1, len(data) // 4096)
    data[page * 4096 : (page + 1) * 4096] = chance.randbytes(4096)
    path.write_bytes(data)
    try:
        report = check(path)
    except LogUnreadable:
        return  # SQLite's own tables are hit: nothing can be said but that.
    assert not report.clean


class Fragile(Holders):
    """A projection that is sure of its records, as projections are of their own log's."""

    def rows(self, position: int, record: Record, read: Reader) -> Iterator[RowChange]:
        assert isinstance(record.fields[0], int)
        yield from super().rows(position, record, read)


class FragileFold(PortsSeen):
    """A fold that is."""

    def apply(self, position: int, record: Record) -> None:
        if record.fields[1] != b"":
            raise KeyError(record.fields[1])
        super().apply(position, record)


def test_a_record_that_no_projection_can_take_in_is_a_fault_and_all_else_is_still_checked(
    path: Path, forged: sqlite3.Connection
) -> None:
    odd = encode(make_record(17, ("no port", b"")))
    forged.execute("UPDATE log_records SET bytes = ? WHERE position = 17", (odd,))
    forged.execute("UPDATE log_records SET type = 17 WHERE position = 40")
    put_guards_back(forged)
    with LogReader.open(path) as reader:
        report = verify(reader, [Fragile()])
        with pytest.raises(ProjectionError, match="holders cannot take in the record at 17"):
            compare_projection(reader, Fragile())
    found = [(fault.position, fault.kind) for fault in report.faults]
    assert found == [(17, FaultKind.LEAF), (17, FaultKind.PROJECTION), (40, FaultKind.COLUMNS)]


def test_a_record_that_no_state_can_take_in_is_a_fault_and_all_else_is_still_checked(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with Log.open(path) as log:
        log.append(many_held(5))
        take_snapshot(log)
    with LogReader.open(path) as reader:
        report = verify(reader, folds=[FragileFold()])
    assert [(fault.position, fault.kind) for fault in report.faults] == [(0, FaultKind.SNAPSHOT)]
    assert report.first is not None
    assert "ports cannot take in this record: KeyError" in report.first.detail


def test_appending_what_a_projection_cannot_take_in_fails_whole(path: Path) -> None:
    with Log.open(path, projections=[Fragile()]) as log, pytest.raises(AppendFailed, match="cannot take in"):
        log.append([held(999), make_record(1000, ("no port", b""))])
    with LogReader.open(path) as reader:
        assert reader.size == 300


def test_what_is_said_to_have_gone_is_checked_beside_a_redacted_record_too(
    path: Path, forged: sqlite3.Connection
) -> None:
    put_guards_back(forged)
    with Log.open(path, projections=[Holders()]) as log:
        redact(log, 40, "asked for", START_NS + 400 * SECOND_NS, projections=[Holders()])
    assert check(path).clean
    forged.execute("INSERT INTO log_gone VALUES (0, 9999, 0)")
    assert [fault.kind for fault in check(path).faults] == [FaultKind.REDACTION]


def test_a_new_version_takes_none_of_the_store_s_own_tables_away(
    path: Path, forged: sqlite3.Connection
) -> None:
    put_guards_back(forged)
    forged.execute("""UPDATE log_projections SET tables = '["log_records"]'""")
    with pytest.raises(LogUnreadable, match="log_records, which is no projection's"):
        Log.open(path, projections=[Holders(2)])
    with LogReader.open(path) as reader:
        assert reader.entry(299).record is not None
