"""A snapshot is believed when a record in the tree says its hash."""

from pathlib import Path

import pytest

from eventlog.merkle import EMPTY_ROOT
from eventlog.record import SNAPSHOT_TAKEN
from eventlog.snapshot import Snapshot, SnapshotDamaged, snapshot_fields
from eventlog.store import AppendFailed, Log, LogReader
from eventlog.verify import FaultKind, verify
from tests.unit.eventlog.samples import PortsSeen, make_record, many_held, take_snapshot


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


def test_the_newest_snapshot_comes_back_after_a_restart_and_two_are_kept(path: Path) -> None:
    with Log.open(path) as log:
        for first in range(0, 30, 10):
            log.append(many_held(10, first))
            take_snapshot(log)
        log.append(many_held(10, 30))
        taken = take_snapshot(log)
    with Log.open(path) as log:
        found = log.latest_snapshot("ports", 1)
        assert found is not None
        assert (found.size, found.state) == (taken.size, taken.state)
        assert [snapshot.size for snapshot in log.snapshots("ports")] == [43, 32]
        assert log.latest_snapshot("ports", 2) is None
        assert log.latest_snapshot("others", 1) is None
        assert verify(log, folds=[PortsSeen()]).clean


def test_a_snapshot_without_a_record_that_says_so_is_not_kept(path: Path) -> None:
    snapshot = Snapshot("ports", 1, 0, b"state")
    right = make_record(1, snapshot_fields(snapshot, EMPTY_ROOT), kind=SNAPSHOT_TAKEN)
    other_state = snapshot_fields(Snapshot("ports", 1, 0, b"other"), EMPTY_ROOT)
    other_log = snapshot_fields(snapshot, bytes(32))
    wrong = [make_record(1, fields, kind=SNAPSHOT_TAKEN) for fields in (other_state, other_log)]
    for records in ([], wrong[:1], wrong[1:], [right, *many_held(1, 50)]):
        with Log.open(path) as log, pytest.raises(AppendFailed, match="another state"):
            log.append(records, snapshot=snapshot)
    with Log.open(path) as log:
        log.append([right], snapshot=snapshot)
        assert log.latest_snapshot("ports", 1) == Snapshot("ports", 1, 0, b"state", said_at=0)


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE log_snapshots SET state = x'00'",
        "UPDATE log_snapshots SET size = size + 1",
        "UPDATE log_snapshots SET said_at = said_at - 1",
        "UPDATE log_snapshots SET said_at = 999",
        "UPDATE log_records SET bytes = x'c0' WHERE type = 4",
        "UPDATE log_records SET bytes = NULL WHERE type = 4",
        "UPDATE log_nodes SET hash = zeroblob(32) WHERE level = 4 AND number = 0",
        "UPDATE log_head SET root = zeroblob(32)",
    ],
)
def test_a_damaged_snapshot_is_not_believed(path: Path, forgery: str) -> None:
    with Log.open(path) as log:
        log.append(many_held(39))
        take_snapshot(log)
        log._connection.execute("DROP TRIGGER log_records_never_change")
        log._connection.execute("DROP TRIGGER log_nodes_never_change")
        log._connection.execute(forgery)
    with LogReader.open(path) as reader:
        with pytest.raises(SnapshotDamaged, match="ports"):
            reader.latest_snapshot("ports", 1)
        assert not verify(reader, folds=[PortsSeen()]).clean


def test_a_state_that_the_records_do_not_give_is_found_by_folding_them(path: Path) -> None:
    with Log.open(path) as log:
        log.append(many_held(39))
        taken = take_snapshot(log, state=b"a state somebody made up")
        assert log.latest_snapshot("ports", 1) == taken
        assert verify(log).clean
        report = verify(log, folds=[PortsSeen()])
    assert report.first is not None
    assert (report.first.position, report.first.kind) == (39, FaultKind.SNAPSHOT)
