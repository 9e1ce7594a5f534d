"""kill -9 in the middle of a loaded append: what was acknowledged is there, and no batch is there by half.

50 kills by default; by hand `tools/test tests/crash/test_log_kill.py --kills 500 --timeout 0`. The seed is
printed with a failure; the moment of a kill can't be had again.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import IO

import pytest

from eventlog.store import Log, LogReader
from eventlog.verify import verify
from tests.crash.log_appender import WORKER
from tests.crash.place import ROOT
from tests.unit.eventlog.samples import Holders, held

KILLS_PER_LOG = 10
LONGEST_LIFE = 12
DYING_S = 0.02
"""About what it takes to make a log, or to append ten batches."""


class Appender:
    """Starts and kills appending processes; what they said is kept."""

    def __init__(self, commands: IO[str], said: IO[str]) -> None:
        self._commands = commands
        self._said = said
        self.acknowledged: dict[int, bytes] = {}

    def live_and_die(
        self, path: Path, seed: int, appends: int = LONGEST_LIFE, dying_s: float = DYING_S
    ) -> None:
        """Killed after up to `appends` acknowledged ones, at a moment in the next, or before there is any."""
        chance = Random(seed)
        print(path, seed, file=self._commands, flush=True)
        _, child = self._said.readline().split()
        for _ in range(chance.randint(0, appends)):
            self._hear()
        time.sleep(chance.uniform(0, dying_s))
        os.kill(int(child), signal.SIGKILL)
        while (status := self._hear()) is None:
            pass
        assert os.WTERMSIG(status) == signal.SIGKILL, f"it ended by itself, seed {seed}"

    def _hear(self) -> int | None:
        """Take in the next acknowledgement; the status once the process has ended."""
        match self._said.readline().split():
            case ["acknowledged", size, root]:
                self.acknowledged[int(size)] = bytes.fromhex(root)
                return None
            case ["ended", status]:
                return int(status)
            case line:
                raise AssertionError(line)


@contextmanager
def appending(module: str) -> Iterator[Appender]:
    """A process of this module that starts the others."""
    process = subprocess.Popen(
        [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        yield Appender(process.stdin, process.stdout)
    assert process.returncode == 0


@pytest.fixture
def appender() -> Iterator[Appender]:
    with appending("tests.crash.log_appender") as appender:
        yield appender


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--kills"))


def check(reader: LogReader, acknowledged: dict[int, bytes]) -> None:
    """All that was acknowledged is there, byte for byte, and what else is there ends with a batch."""
    with reader.snapshot():
        assert reader.size >= max(acknowledged, default=0), "acknowledged records are gone"
        for size, root in acknowledged.items():
            assert reader.root_at(size) == root, f"the first {size} records are not those acknowledged"
        last = next((answer for answer in reader.latest_answers() if answer.name == WORKER), None)
        end = b"%d" % reader.size
        assert (None if last is None else last.reply) == reader.note("end"), "half a batch"
        assert last is None or last.reply == end, "half a batch"


def test_what_was_acknowledged_survives_kill_9_and_no_batch_is_there_by_half(
    tmp_path: Path, appender: Appender, kills: int
) -> None:
    chance = Random(os.urandom(8))
    appended = 0
    for number in range(-(-kills // KILLS_PER_LOG)):
        path = tmp_path / f"log-{number}.sqlite"
        appender.acknowledged.clear()
        for _ in range(min(kills, KILLS_PER_LOG)):
            with ExitStack() as readers:
                if appender.acknowledged and chance.random() < 0.5:
                    # While it is there, SQLite's shared memory is what the killed process left.
                    reader = readers.enter_context(LogReader.open(path))
                    assert reader.size >= max(appender.acknowledged)
                appender.live_and_die(path, chance.getrandbits(32))
                if appender.acknowledged:
                    check(readers.enter_context(LogReader.open(path)), appender.acknowledged)
        with Log.open(path, projections=[Holders()]) as log:
            check(log, appender.acknowledged)
            report = verify(log, [Holders()])
            assert report.clean, report.first
            appended += log.size
            assert log.append([held(10**9)]) == range(log.size - 1, log.size)
    assert appended > kills, "they were killed before they had begun"


def test_a_writer_killed_while_it_makes_the_file_leaves_one_that_can_be_opened(
    tmp_path: Path, appender: Appender
) -> None:
    for attempt in range(15):
        path = tmp_path / f"log-{attempt}.sqlite"
        appender.acknowledged.clear()
        appender.live_and_die(path, attempt, appends=0)
        with Log.open(path, projections=[Holders()]) as log:
            check(log, appender.acknowledged)
            assert verify(log, [Holders()]).clean
            log.append([held(10**9)])
