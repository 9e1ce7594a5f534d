"""A log is read wherever it lies, and what lies in a WAL is never passed over in silence."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog.store import Log, LogReader, LogUnreadable
from eventlog.tables import ProjectionTables
from eventlog.verify import verify
from tests.unit.eventlog.samples import Holders, make_log, many_held


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which a test may make read-only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "porthold-test", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def test_a_log_on_a_read_only_disk_is_read_as_it_is(disk: Path) -> None:
    path = make_log(disk / "log.sqlite", 50)
    make_read_only(disk)
    with LogReader.open(path) as reader:
        assert reader.size == 50
        assert verify(reader, [Holders()]).clean


@pytest.mark.parametrize(
    ("suffixes", "size"), [(("-wal", "-shm"), 55), (("-wal",), None)], ids=["with its index", "without"]
)
def test_records_in_a_wal_are_read_or_it_is_said_that_they_cannot(
    disk: Path, suffixes: tuple[str, ...], size: int | None
) -> None:
    path = make_log(disk / "log.sqlite", 50)
    copy = disk / "copy.sqlite"
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(5, 100))
        for suffix in ("", *suffixes):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    make_read_only(disk)
    if size is None:
        with pytest.raises(LogUnreadable, match=r"it has a copy\.sqlite-wal.*copy both to another one"):
            LogReader.open(copy)
    else:
        with LogReader.open(copy) as reader:
            assert reader.size == size


def test_what_was_being_read_ends_quietly_when_the_log_is_closed_first(tmp_path: Path) -> None:
    with LogReader.open(make_log(tmp_path / "log.sqlite", 300)) as reader:
        nodes = reader.stored_nodes(4)
        rows = ProjectionTables(reader.connection_for_checks(), Holders()).all_rows("holders")
        assert next(nodes)
        assert next(rows)
    del nodes, rows  # What they raise then becomes a warning, and that an error.
