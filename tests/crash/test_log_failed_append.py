"""Appends that fail: full disks, failing ones, lost locks, taken files. Nothing is left, and it is said why.

Where the failure is injected, every operation on SQLite's files is failed once: see faulty_files.py. Where it
can be had for real (a full tmpfs, a read-only one, a shell that takes the WAL away), it is.
"""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from eventlog.store import AppendFailed, Log, LogLocked, LogReader, LogUnreadable
from eventlog.verify import verify
from tests.crash.faulty_files import Fault, FaultyFiles, Kind, Reason
from tests.crash.log_load import State, Step, check_log, next_step
from tests.crash.place import ROOT
from tests.unit.eventlog.samples import Holders, held, make_log, make_record, many_held

NAME = "log.sqlite"
ALL_KINDS: frozenset[Kind] = frozenset(("write", "truncate", "sync", "open", "delete"))
SAID = {
    "full": "database or disk is full",
    "io": "disk I/O error|unable to open database file",
    "read-only": "attempt to write a readonly database",
}


def append_with_fault(directory: Path, fault: Fault) -> tuple[Step, State, Exception | None]:
    """A step that comes after others, on a log whose WAL is carried over with each append."""
    chance = Random(1)
    path = directory / NAME
    with FaultyFiles(directory) as files:
        state = State()
        with Log.open(path, projections=[Holders()]) as log:
            log.connection_for_checks().execute("PRAGMA wal_autocheckpoint = 1")
            for _ in range(3):
                step = next_step(state, chance)
                step.take(log)
                state = step.after
            step = next_step(state, Random(4))
            files.fault = fault
            try:
                step.take(log)
            except AppendFailed as failure:
                with pytest.raises(AppendFailed, match="it is closed"):
                    log.append([held(10**6)])
                return step, state, failure
    return step, state, None


@pytest.mark.parametrize(
    ("reason", "lasting", "half"),
    [
        ("full", False, False),
        ("full", True, True),
        ("io", False, True),
        ("io", True, False),
        ("read-only", True, False),
    ],
)
def test_whichever_operation_fails_an_append_is_there_whole_or_says_why_not(
    memory: Path, reason: Reason, lasting: bool, half: bool
) -> None:
    failures = 0
    for after in range(1000):
        directory = memory / str(after)
        directory.mkdir()
        fault = Fault(reason, ALL_KINDS, after, lasting, half)
        step, before, failure = append_with_fault(directory, fault)
        if failure is None:
            check_log(directory / NAME, (step.after,))
        else:
            failures += 1
            assert str(failure).startswith(f"{directory / NAME}: ")
            assert re.search(SAID[reason], str(failure))
            # A sync that fails when all is written, on a disk that then fails on closing: whole after all.
            check_log(directory / NAME, (before, step.after))
        if not fault.hits:
            break
    assert after > failures > 8


def test_a_failed_write_leaves_nothing(memory: Path) -> None:
    """Also while somebody reads: then the WAL stays, with what was written of the batch."""
    for after in range(12):
        path = memory / str(after) / NAME
        path.parent.mkdir()
        make_log(path, 20)
        with (
            FaultyFiles(path.parent) as files,
            Log.open(path, projections=[Holders()]) as log,
            LogReader.open(path) as reader,
        ):
            log.append(many_held(5, 20))
            files.fault = Fault("full", frozenset(("write",)), after, lasting=True, half=True)
            with pytest.raises(AppendFailed, match="full"):
                log.append(many_held(50, 25))
            assert reader.size == 25
            assert verify(reader, [Holders()]).clean
        with Log.open(path, projections=[Holders()]) as log:
            assert log.size == 25
            assert log.append(many_held(50, 25)) == range(25, 75)
            assert verify(log, [Holders()]).clean


def test_a_log_is_made_with_a_wal_or_not_at_all(memory: Path) -> None:
    """SQLite does not raise when it can't have one, and goes on with less."""
    refused = 0
    for after in range(1000):
        directory = memory / str(after)
        directory.mkdir()
        fault = Fault("io", ALL_KINDS, after)
        with FaultyFiles(directory) as files:
            files.fault = fault
            try:
                with Log.open(directory / NAME, projections=[Holders()]) as log:
                    assert log.query("PRAGMA journal_mode") == [("wal",)]
            except LogUnreadable:
                refused += 1
        check_log(directory / NAME, (State(),))
        if not fault.hits:
            break
    assert refused > 50


def test_a_full_disk_fails_the_append_and_with_room_it_goes_on(small_disk: Path) -> None:
    path = small_disk / NAME
    appended = 0
    failure = None
    with Log.open(path, projections=[Holders()]) as log:
        while failure is None:
            try:
                log.append([make_record(appended + part, (os.urandom(500),)) for part in range(10)])
                appended += 10
            except AppendFailed as error:
                failure = str(error)
    assert failure in (f"{path}: database or disk is full", f"{path}: disk I/O error")
    assert appended > 100
    with LogReader.open(path) as reader:
        assert reader.size == appended
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    with Log.open(path, projections=[Holders()]) as log:
        assert log.size == appended
        assert log.append(many_held(3, appended)) == range(appended, appended + 3)
        assert verify(log, [Holders()]).clean


def test_on_a_read_only_disk_a_log_is_read_but_not_written(small_disk: Path) -> None:
    path = make_log(small_disk / NAME, 20)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with LogReader.open(path) as reader:
        assert reader.size == 20
    with pytest.raises(LogUnreadable, match=r"cannot be opened for writing: .*Read-only file system"):
        Log.open(path, projections=[Holders()])


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("do", [remove, replace])
@pytest.mark.parametrize(
    ("suffix", "said"),
    [("", "it is gone, or another file"), (".lock", "its lock file is gone"), ("-wal", "its WAL is gone")],
)
def test_a_log_whose_file_is_taken_away_takes_no_more(
    tmp_path: Path, suffix: str, said: str, do: Callable[[Path], None]
) -> None:
    path = tmp_path / NAME
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(5))
        do(path.with_name(NAME + suffix))
        with pytest.raises(AppendFailed, match=said):
            log.append(many_held(5, 5))


def test_a_shell_takes_nothing_from_a_writer_whose_process_reads_too(tmp_path: Path) -> None:
    """SQLite's locks are the process's: whoever closes a descriptor of the file, gives them up."""
    path = make_log(tmp_path / NAME, 5)
    with LogReader.open(path) as reader:
        assert reader.size == 5
        with Log.open(path, projections=[Holders()]) as log:
            log.append(many_held(5, 5))
            ask = ["sqlite3", str(path), "SELECT count(*) FROM log_records"]
            assert subprocess.run(ask, check=True, capture_output=True, text=True).stdout == "10\n"
            log.append(many_held(5, 10))
            assert subprocess.run(ask, check=True, capture_output=True, text=True).stdout == "15\n"
    with LogReader.open(path) as reader:
        assert reader.size == 15


def test_somebody_else_s_write_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(5))
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE log_head SET size = 4")
        with pytest.raises(AppendFailed, match="somebody else has written to it"):
            log.append(many_held(5, 5))


WRITER = """
import sys, time
from eventlog.store import Log
from tests.unit.eventlog.samples import Holders, many_held
log = Log.open(sys.argv[1], projections=[Holders()])
log.append(many_held(5))
print("appended", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_told_who_writes_and_after_kill_9_has_its_place_at_once(tmp_path: Path) -> None:
    path = tmp_path / NAME
    first = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "appended\n"
        with pytest.raises(LogLocked, match=f"{NAME} is being written by process {first.pid} .*python"):
            Log.open(path, projections=[Holders()])
        with LogReader.open(path) as reader:
            assert reader.size == 5
        first.send_signal(signal.SIGKILL)
        first.wait(5)
        with Log.open(path, projections=[Holders()]) as log:
            assert log.append(many_held(5, 5)) == range(5, 10)
            assert verify(log, [Holders()]).clean
