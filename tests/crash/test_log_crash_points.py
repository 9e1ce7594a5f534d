"""Power failures, at any moment, with any part of what was not synced: nothing acknowledged is lost.

A story is told by its seed: a log is opened, appended to, closed and opened again, with readers and with
disks that fill up and fail; all that is done to its files is written down. Then the power fails at random
points of the story (and sometimes once more, while the log is opened again), and the log is opened on what is
left: all acknowledged is there, no batch by half, `verify` finds nothing, and the next append works.

200 points by default; by hand (3 minutes)
`tools/test tests/crash/test_log_crash_points.py --crash-points 10000 --timeout 0`.
A failure says its seed: `--crash-seed SEED --crash-points 20` tells that story again.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest

from eventlog.store import AppendFailed, Log, LogReader, LogUnreadable
from tests.crash.crashed_disk import CrashedDisk
from tests.crash.faulty_files import Fault, FaultyFiles, Kind, Marked, Operation, Reason
from tests.crash.log_load import State, Step, check_log, next_step
from tests.unit.eventlog.samples import Holders

POINTS_PER_STORY = 20
SESSIONS = 3
STEPS = 16
NAME = "log.sqlite"

Possible: TypeAlias = tuple[State, ...]
"""The states in which a log may be found: one, or two while a step is not acknowledged."""


class Story:
    """Sessions on one log, each a process's life: open, some steps, an end."""

    def __init__(self, files: FaultyFiles, chance: Random) -> None:
        self._files = files
        self._chance = chance
        self._path = files.directory / NAME
        self._state = State()
        self._unacknowledged: Step | None = None

    def tell(self) -> None:
        self._files.mark((self._state,))
        for _ in range(SESSIONS):
            with ExitStack() as readers:
                self._session(readers)

    def _session(self, readers: ExitStack) -> None:
        self._files.fault = self._fault() if self._chance.random() < 0.5 else None
        try:
            with Log.open(self._path, projections=[Holders()]) as log:
                assert State.of(log) in self._possible()
                # Otherwise SQLite carries the WAL over only after 1,000 pages.
                pages = self._chance.choice((2, 10, 40, 1000))
                log.connection_for_checks().execute(f"PRAGMA wal_autocheckpoint = {pages}")
                for _ in range(self._chance.randrange(STEPS)):
                    self._perhaps_read(readers)
                    self._step(log)
        except (AppendFailed, LogUnreadable) as failure:
            if self._files.fault is None or not self._files.fault.hits:
                raise AssertionError("it failed, and nothing had made it fail") from failure
        finally:
            self._files.fault = None

    def _step(self, log: Log) -> None:
        step = self._unacknowledged or next_step(self._state, self._chance)
        self._unacknowledged = step
        self._files.mark(self._possible())
        step.take(log)
        self._files.mark((step.after,))
        self._state, self._unacknowledged = step.after, None

    def _possible(self) -> Possible:
        if self._unacknowledged is None:
            return (self._state,)
        return (self._state, self._unacknowledged.after)

    def _perhaps_read(self, readers: ExitStack) -> None:
        """Readers come and go; while one is there, the WAL can't begin anew."""
        if self._chance.random() < 0.1:
            reader = readers.enter_context(LogReader.open(self._path))
            readers.enter_context(reader.snapshot())
            assert State.of(reader) in self._possible()
        elif self._chance.random() < 0.1:
            readers.close()

    def _fault(self) -> Fault:
        kinds: tuple[Kind, ...] = ("write", "truncate", "sync", "open", "delete")
        chosen = frozenset(self._chance.sample(kinds, self._chance.randint(1, len(kinds))))
        reasons: tuple[Reason, ...] = ("full", "io", "read-only")
        # Making a log takes 150 operations, a step a dozen.
        after = int(self._chance.expovariate(1 / self._chance.choice((20, 200))))
        fault = Fault(self._chance.choice(reasons), chosen, after)
        fault.lasting = self._chance.random() < 0.5
        fault.half = self._chance.random() < 0.5
        return fault


@pytest.fixture
def points(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--crash-points"))


@pytest.fixture
def first_seed(request: pytest.FixtureRequest) -> int:
    chosen = request.config.getoption("--crash-seed")
    if chosen is not None:
        return int(chosen)
    return 0 if os.environ.get("CI") == "true" else int.from_bytes(os.urandom(3), "big")


def crash_somewhere(diary: list[Operation], directory: Path, chance: Random) -> Possible:
    begin = next(index for index, operation in enumerate(diary) if isinstance(operation, Marked))
    return crash(diary[: chance.randint(begin + 1, len(diary))], directory, chance)


def crash(diary: list[Operation], directory: Path, chance: Random) -> Possible:
    """Put into the directory what the disk may hold after the diary's end; returns what it may say."""
    directory.mkdir()
    disk = CrashedDisk(diary, chance)
    for name, data in disk.files().items():
        (directory / name).write_bytes(data)
    if chance.random() < 0.2:
        (directory / f"{NAME}-shm").write_bytes(chance.randbytes(32768))  # never synced: may hold anything
    known = [operation.what for operation in diary if isinstance(operation, Marked)]
    possible = known[-1]
    assert isinstance(possible, tuple)
    return possible


def crash_again(directory: Path, possible: Possible, second: Path, chance: Random) -> Possible:
    """The power fails once more, while the log is opened or just afterwards."""
    with FaultyFiles(directory) as files:
        files.mark(possible)
        with Log.open(directory / NAME, projections=[Holders()]) as log:
            state = State.of(log)
            assert state in possible
            for _ in range(2):
                step = next_step(state, chance)
                files.mark((*possible, step.after))
                step.take(log)
                state, possible = step.after, (step.after,)
                files.mark(possible)
    return crash_somewhere(files.diary, second, chance)


def test_nothing_acknowledged_is_lost_whenever_the_power_fails(
    memory: Path, points: int, first_seed: int
) -> None:
    for seed in range(first_seed, first_seed - (-points // POINTS_PER_STORY)):
        chance = Random(seed)
        place = memory / f"story-{seed}"
        place.mkdir()
        with FaultyFiles(place) as files:
            Story(files, chance).tell()
        for point in range(min(points, POINTS_PER_STORY)):
            directory = place / f"point-{point}"
            try:
                possible = crash_somewhere(files.diary, directory, chance)
                if chance.random() < 0.2:
                    again = place / f"point-{point}-again"
                    directory, possible = again, crash_again(directory, possible, again, chance)
                check_log(directory / NAME, possible)
            except (AssertionError, pytest.fail.Exception, LogUnreadable, AppendFailed) as error:
                raise AssertionError(f"--crash-seed {seed}, point {point}: {error}") from error


@pytest.mark.parametrize("seed", range(20))
def test_what_a_failed_sync_left_in_memory_is_on_the_disk_before_it_is_acknowledged(
    memory: Path, seed: int
) -> None:
    """Linux shows to all readers what it failed to write, and takes it for written."""
    chance = Random(seed)
    place = memory / "place"
    place.mkdir()
    with FaultyFiles(place) as files:
        files.mark((State(),))
        with Log.open(place / NAME, projections=[Holders()]) as log, LogReader.open(place / NAME) as reader:
            first = next_step(State(), chance)
            first.take(log)
            assert State.of(reader) == first.after  # As long as somebody reads, nobody takes the WAL away.
            files.fault = Fault("io", frozenset(("sync",)), 0)
            second = next_step(first.after, chance)
            with pytest.raises(AppendFailed, match="disk I/O error"):
                second.take(log)
        failed = len(files.diary)
        files.mark((first.after, second.after))
        with Log.open(place / NAME, projections=[Holders()]) as log:
            second.take(log)
            third = next_step(second.after, chance)
            files.mark((second.after, third.after))
            third.take(log)
            files.mark((third.after,))
            ended = len(files.diary)
    for at in {*(chance.randint(failed + 1, ended) for _ in range(10)), ended}:
        left = memory / f"left-{at}"
        check_log(left / NAME, crash(files.diary[:at], left, chance))
