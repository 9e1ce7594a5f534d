"""A backup is a clean log of one moment, or it is not there."""

import threading
from pathlib import Path

import pytest

from eventlog.backup import BackupFailed, backup
from eventlog.store import Log, LogReader
from tests.unit.eventlog.samples import Holders, held, make_log, many_held


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
