"""A backup is a clean log of one moment, or it is not there."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from eventlog.archive import archives_of
from eventlog.backup import BackupFailed, backup
from eventlog.retention import archive_segment, close_segment
from eventlog.store import Log, LogReader
from eventlog.verify import FaultKind, verify
from tests.unit.eventlog.samples import SECOND_NS, START_NS, Holders, held, make_log, many_held

LATER_NS = START_NS + 10**6 * SECOND_NS


def test_a_backup_taken_while_records_come_in_is_a_clean_log_that_can_go_on(tmp_path: Path) -> None:
    path = make_log(tmp_path / "log.sqlite", 3000)
    stop = threading.Event()
    appended: list[int] = []

    def write() -> None:
        with Log.open(path, projections=[Holders()]) as log:
            while not stop.is_set():
                appended.extend(log.append(many_held(5, 3000 + len(appended))))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reports = [backup(path, tmp_path / f"backup-{number}.sqlite", [Holders()]) for number in range(3)]
    finally:
        stop.set()
        writer.join()
    assert appended
    assert all(report.clean and report.size >= 3000 for report in reports)
    with (
        LogReader.open(path) as reader,
        Log.open(tmp_path / "backup-2.sqlite", projections=[Holders()]) as copy,
    ):
        assert copy.head().root == reader.root_at(copy.size)
        assert copy.append([held(10**6)]) == range(reports[2].size, reports[2].size + 1)
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_a_backup_is_one_file_for_its_owner_only(tmp_path: Path) -> None:
    path = make_log(tmp_path / "log.sqlite", 20)
    directory = tmp_path / "backups"
    directory.mkdir()
    backup(path, directory / "backup.sqlite", [Holders()])
    assert [file.name for file in directory.iterdir()] == ["backup.sqlite"]
    assert (directory / "backup.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_damaged_log_has_no_backup(tmp_path: Path) -> None:
    path = make_log(tmp_path / "log.sqlite", 20)
    with Log.open(path, projections=[Holders()]) as log:
        log._connection.execute("DROP TRIGGER log_records_never_change")
        log._connection.execute("UPDATE log_records SET type = 17 WHERE position = 3")
    with pytest.raises(BackupFailed, match="not clean"):
        backup(path, tmp_path / "backup.sqlite", [Holders()])
    assert not (tmp_path / "backup.sqlite").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = make_log(tmp_path / "log.sqlite", 20)
    (tmp_path / "backup.sqlite").write_text("something else")
    with pytest.raises(BackupFailed, match="exists"):
        backup(path, tmp_path / "backup.sqlite")
    assert (tmp_path / "backup.sqlite").read_text() == "something else"
    with pytest.raises(BackupFailed):
        backup(path, tmp_path / "missing" / "backup.sqlite")


def test_a_backup_has_the_archives_too_or_is_none(tmp_path: Path) -> None:
    path = make_log(tmp_path / "log.sqlite", 300)
    with Log.open(path, projections=[Holders()]) as log:
        close_segment(log, 100, LATER_NS)
        archive = archive_segment(log, 0, LATER_NS)
    copy = tmp_path / "copy" / "log.sqlite"
    copy.parent.mkdir()
    assert backup(path, copy, [Holders()]).records_checked == 302
    assert [file.name for file in archives_of(copy).iterdir()] == [archive.name]
    with LogReader.open(path) as reader, LogReader.open(copy) as copied:
        assert list(copied.read()) == list(reader.read())
    archive.write_bytes(archive.read_bytes()[:-1])
    other = tmp_path / "other.sqlite"
    with pytest.raises(BackupFailed, match="cut off"):
        backup(path, other, [Holders()])
    archive.unlink()
    with pytest.raises(BackupFailed, match="No such file"):
        backup(path, other, [Holders()])
    archives_of(other).mkdir()
    with pytest.raises(BackupFailed, match="exists already"):
        backup(path, other, [Holders()])
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []
    assert not other.exists()


def test_a_replicators_own_tables_and_long_reads_are_no_harm(tmp_path: Path) -> None:
    # What Litestream does to a database: two tables of its own, a row that it counts up, a read that lasts.
    path = make_log(tmp_path / "log.sqlite", 50)
    with closing(sqlite3.connect(path, isolation_level=None)) as replicator:
        replicator.execute("CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)")
        replicator.execute("CREATE TABLE _litestream_lock (id INTEGER)")
        replicator.execute("INSERT INTO _litestream_seq VALUES (1, 1)")
        replicator.execute("BEGIN")
        replicator.execute("SELECT count(*) FROM _litestream_seq").fetchall()
        with Log.open(path, projections=[Holders()], busy_s=0.1) as log:
            log.append([held(10**6)])
            assert verify(log, [Holders()]).clean
            assert not log.give_back()  # An older state of the file is held.
            replicator.execute("ROLLBACK")
            assert log.give_back()
    assert backup(path, tmp_path / "copy.sqlite", [Holders()]).clean


@pytest.mark.parametrize("put", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir])
def test_what_is_no_file_in_an_archive_s_place_is_a_fault_and_holds_nobody_up(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    path = make_log(tmp_path / "log.sqlite", 100)
    with Log.open(path, projections=[Holders()]) as log:
        close_segment(log, 96, LATER_NS)
        archive = archive_segment(log, 0, LATER_NS)
    archive.unlink()
    put(archive)
    with LogReader.open(path) as reader:
        assert [fault.kind for fault in verify(reader).faults] == [FaultKind.ARCHIVE]
    with pytest.raises(BackupFailed, match=archive.name):
        backup(path, tmp_path / "backup.sqlite", [Holders()])
    assert not (tmp_path / "backup.sqlite").exists()
