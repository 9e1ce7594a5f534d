"""Archiving, redacting, pruning and compacting, cut short: by kill -9, by disks that fail and that are full.

What is left is the log before or after, never between: clean, with every record that it does not say is gone.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from eventlog.archive import archives_of
from eventlog.checkpoint import make_checkpoint
from eventlog.reading import Entry, LogReader
from eventlog.record import SEGMENT_ARCHIVED, Record
from eventlog.retention import RetentionRefused, archive_segment, close_segment, prune_segments, redact
from eventlog.store import AppendFailed, Log, LogUnreadable
from eventlog.verify import verify
from tests.crash.faulty_files import Fault, FaultyFiles, Kind, Reason
from tests.crash.log_archivist import KEY
from tests.crash.test_log_kill import Appender, appending
from tests.unit.eventlog.samples import SECOND_NS, START_NS, Holders, many_held

NAME = "log.sqlite"
RECORDS = 150
SEGMENT = 100
LATER_NS = START_NS + 10**6 * SECOND_NS
ALL_KINDS: frozenset[Kind] = frozenset(("write", "truncate", "sync", "open", "delete"))
KILLS = 24
KILLS_PER_LOG = 8


@dataclass(frozen=True)
class Filled:
    """A log with a closed segment, what it said, and a checkpoint of it that was kept."""

    path: Path
    records: list[Entry]
    note: bytes

    def check(self, gone: range) -> None:
        """Clean, and all is there but, perhaps, what was to go."""
        with LogReader.open(self.path) as reader:
            report = verify(reader, [Holders()], keys=[KEY.verifying_key], against=[self.note])
            assert report.clean, report.faults
            for entry in reader.read_with_gaps(0, RECORDS):
                if isinstance(entry, Entry) and entry.data is not None:
                    assert entry == self.records[entry.position]
                else:
                    place = entry.position if isinstance(entry, Entry) else entry.span.first
                    assert place in gone


def filled(path: Path) -> Filled:
    path.parent.mkdir(exist_ok=True)
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(RECORDS))
        note = make_checkpoint(log, KEY, LATER_NS)
        close_segment(log, SEGMENT, LATER_NS)
        return Filled(path, list(log.read(0, RECORDS)), note)


def archive(log: Log) -> None:
    archive_segment(log, 0, LATER_NS)


def prune(log: Log) -> None:
    prune_segments(log, [0], "too old", LATER_NS, projections=[Holders()])


def take_out(log: Log) -> None:
    redact(log, 7, "asked for", LATER_NS, projections=[Holders()])


def compact(log: Log) -> None:
    log.give_back(whole=True)


@dataclass(frozen=True)
class Work:
    """What is done, after what, and which records are then gone for good."""

    do: Callable[[Log], None]
    before: tuple[Callable[[Log], None], ...] = ()
    gone: range = range(0)


WORK = {
    "archive": Work(archive),
    "redact": Work(take_out, gone=range(7, 8)),
    "redact in an archive": Work(take_out, (archive,), range(7, 8)),
    "prune": Work(prune, gone=range(SEGMENT)),
    "prune an archive": Work(prune, (archive,), range(SEGMENT)),
    "compact": Work(compact, (archive,)),
}


@pytest.mark.parametrize("reason", ["full", "io"])
@pytest.mark.parametrize("name", WORK)
def test_whichever_operation_fails_old_records_are_there_or_said_to_be_gone(
    memory: Path, name: str, reason: Reason
) -> None:
    work = WORK[name]
    failures = 0
    for after in range(0, 1000, 3):
        log_before = filled(memory / str(after) / NAME)
        with FaultyFiles(log_before.path.parent) as files:
            with Log.open(log_before.path, projections=[Holders()]) as log:
                for step in work.before:
                    step(log)
            fault = files.fault = Fault(reason, ALL_KINDS, after, lasting=after % 2 == 0, half=after % 4 < 2)
            with suppress(AppendFailed, LogUnreadable, RetentionRefused):
                try:
                    with Log.open(log_before.path, projections=[Holders()]) as log:
                        work.do(log)
                finally:
                    files.fault = None
                    failures += bool(fault.hits)
        with Log.open(log_before.path, projections=[Holders()]) as log:
            log_before.check(work.gone)
            with suppress(RetentionRefused):  # It is done already.
                work.do(log)
        log_before.check(work.gone)
        if not fault.hits:
            break
    assert failures > 5


def test_an_archive_is_on_the_disk_by_its_name_before_a_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_before = filled(tmp_path / "place" / NAME)
    done: list[str] = []
    fsync, append = os.fsync, Log.append

    def observed(descriptor: int) -> None:
        fsync(descriptor)
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def appended(log: Log, records: list[Record], **more: Any) -> range:
        done.append("append")
        return append(log, records, **more)

    with Log.open(log_before.path, projections=[Holders()]) as log:
        monkeypatch.setattr(os, "fsync", observed)
        monkeypatch.setattr(Log, "append", appended)
        archive(log)
    assert done[: done.index("append")] == ["place", ".000000000000.partial", f"{NAME}.archives"]


@pytest.mark.parametrize("number", range(3))
def test_an_archive_that_cannot_be_synced_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    log_before = filled(tmp_path / "place" / NAME)
    calls = iter(range(100))
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if next(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with Log.open(log_before.path, projections=[Holders()]) as log:
        size = log.size
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", failing)
            with pytest.raises(RetentionRefused, match="Input/output error"):
                archive(log)
        assert log.size == size
        log_before.check(range(0))
        archive(log)
    log_before.check(range(0))
    assert len(list(archives_of(log_before.path).iterdir())) == 1


def test_on_a_full_disk_nothing_is_archived_and_with_room_it_is(small_disk: Path) -> None:
    log_before = filled(small_disk / NAME)
    ballast = small_disk / "ballast"
    with Log.open(log_before.path, projections=[Holders()]) as log:
        with suppress(OSError), ballast.open("wb") as file:
            for _ in range(10**6):
                file.write(bytes(4096))
                file.flush()
        with pytest.raises(RetentionRefused, match="No space left on device"):
            archive(log)
        assert not [entry for entry in log.read() if entry.record and entry.record.type == SEGMENT_ARCHIVED]
        ballast.unlink()
        archive(log)
    log_before.check(range(0))


def test_a_log_killed_while_its_old_records_go_says_what_is_gone_and_has_the_rest(tmp_path: Path) -> None:
    chance = Random(os.urandom(8))
    with appending("tests.crash.log_archivist") as archivist:
        for number in range(KILLS // KILLS_PER_LOG):
            path = tmp_path / f"log-{number}.sqlite"
            archivist.acknowledged.clear()
            for _ in range(KILLS_PER_LOG):
                archivist.live_and_die(path, chance.getrandbits(32), appends=5, dying_s=0.3)
                check_killed(path, archivist)
    assert max(archivist.acknowledged, default=0) > 90, "they were killed before they had begun"


def check_killed(path: Path, archivist: Appender) -> None:
    if not archivist.acknowledged:
        Log.open(path, projections=[Holders()]).close()  # killed while it was being made: it is gone on with
    with LogReader.open(path) as reader:
        report = verify(reader, [Holders()], keys=[KEY.verifying_key])
        assert report.clean, report.faults
        assert all("pruned" in gap.why for gap in report.gone)
        assert reader.size >= max(archivist.acknowledged, default=0)
