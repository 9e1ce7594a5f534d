"""Readable while written: readers, a long transaction, a shell's lock. Nothing is lost; at most it waits.

ulogd2 with SQLite lost 937 of 3,000 records in that test.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eventlog.store import Log, LogReader
from tests.crash.place import PUBLIC, ROOT, SHARED, Place
from tests.unit.eventlog.samples import Holders, many_held
from tracker.client import TrackerClient
from tracker.clock import read_clock
from tracker.events import Event, KernelStateRestored, RecordsMissed, SessionEnded, WorkerLost
from tracker.messages import Acknowledged, Heartbeat, OpenSession, SessionGranted, SessionOver

RECORDS = 3000
READERS = 3
LOCK_S = 6.5
"""Longer than the tracker waits for it at a time (5 s), and than a lease."""
LEASE_S = 3.0
SENDING_S = 7.0
WAL_LIMIT = 16 << 20

READER = """
import sys, time
from eventlog.store import LogReader
looks = size = 0
while looks < 10**6:
    with LogReader.open(sys.argv[1]) as log:
        for _ in range(20):
            with log.snapshot():
                head = log.head()
                assert head.size >= size, "it became shorter"
                assert log.root_at(head.size) == head.root
                last = list(log.read(max(0, head.size - 100)))
                assert not head.size or last[-1].position == head.size - 1
            size = head.size
            looks += 1
            print(size, flush=True)
            time.sleep(0.01)
"""


class Worker:
    """A worker that reports numbers, beats, and keeps what is answered."""

    def __init__(self, place: Place, name: str, address: int) -> None:
        self.gateway = f"gateway-{name}"
        self.client: TrackerClient = place.client(name)
        self.submitted = 0
        self.acknowledged: list[int] = []
        self.most_pending = 0
        self.epoch = 0
        self._beat_s = 0.0
        public = bytes([*PUBLIC[:3], address])
        self.client.submit(
            OpenSession(self.gateway, (public,), (SHARED,), name, take_over=False, fence=False), read_clock()
        )

    def live(self, until: int) -> None:
        now = read_clock()
        if self.epoch and self.submitted < until:
            numbers = range(self.submitted, until)
            self.client.submit_all((self._report(number) for number in numbers), now)
            self.submitted = until
        if self.epoch and time.monotonic() > self._beat_s:
            self.client.send(Heartbeat(self.gateway, self.epoch, self.submitted), now)
            self._beat_s = time.monotonic() + LEASE_S / 4
        for answer in self.client.receive(now):
            match answer.request, answer.reply:
                case _, SessionGranted(epoch=epoch):
                    self.epoch = epoch
                case KernelStateRestored(lost_since_ns=number), Acknowledged():
                    self.acknowledged.append(number)
                case _, SessionOver():
                    raise AssertionError("the session is over")
                case _:
                    pass
        self.client.tick(now)
        self.most_pending = max(self.most_pending, self.client.pending)

    def _report(self, number: int) -> KernelStateRestored:
        return KernelStateRestored(self.gateway, self.epoch, "test", number, number)


@contextmanager
def readers(path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        running = []
        for _ in range(READERS):
            reader = subprocess.Popen(
                [sys.executable, "-c", READER, str(path)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(reader)
            stack.callback(reader.kill)
            running.append(reader)
        yield running


@contextmanager
def shell_lock(path: Path) -> Iterator[subprocess.Popen[str]]:
    """What somebody leaves who types BEGIN IMMEDIATE and goes for a coffee."""
    shell = subprocess.Popen(
        ["sqlite3", "-bail", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        print(".timeout 5000\nBEGIN IMMEDIATE;\nSELECT 'locked';", file=shell.stdin, flush=True)
        assert shell.stdout.readline() == "locked\n"
        yield shell
        print("COMMIT;", file=shell.stdin, flush=True)
        shell.stdin.close()
    assert shell.returncode == 0


def numbers_of(events: list[Event], worker: Worker) -> list[int]:
    return [
        event.lost_since_ns
        for event in events
        if isinstance(event, KernelStateRestored) and event.gateway == worker.gateway
    ]


def test_no_record_is_lost_while_others_read_audit_and_lock(place: Place) -> None:
    place.write_configuration(lease_s=LEASE_S)
    place.start()
    workers = [Worker(place, "a", 1), Worker(place, "b", 2)]
    each = RECORDS // len(workers)
    begin = time.monotonic()

    def live(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            share = (time.monotonic() - begin) / SENDING_S
            for worker in workers:
                worker.live(min(each, round(each * share)))
            time.sleep(0.005)

    live(0.5)
    with LogReader.open(place.log) as auditor, auditor.snapshot(), readers(place.log) as running:
        audited = auditor.head()
        live(0.5)
        with shell_lock(place.log):
            live(0.8)  # A commit that had begun before the lock.
            answered = [len(worker.acknowledged) for worker in workers]
            live(LOCK_S)
            assert [len(worker.acknowledged) for worker in workers] == answered
            assert all(worker.client.pending > each // 2 for worker in workers)
        end = time.monotonic() + 20
        while any(worker.submitted < each or worker.client.pending for worker in workers):
            assert time.monotonic() < end, [worker.client.pending for worker in workers]
            live(0.05)
        assert auditor.head() == audited
        for reader in running:
            reader.terminate()
            said, failed = reader.communicate(timeout=10)
            sizes = [int(line) for line in said.split()]
            assert not failed, failed
            assert len(sizes) > 50
            assert sizes[-1] > audited.size
    for worker in workers:
        assert worker.acknowledged == list(range(each))
        worker.client.close()
    events = place.events()
    assert [numbers_of(events, worker) for worker in workers] == [list(range(each))] * 2
    assert not any(isinstance(event, RecordsMissed | WorkerLost | SessionEnded) for event in events)
    with LogReader.open(place.log) as log:
        assert log.root_at(audited.size) == audited.root
    place.check()
    code, said = place.kill(number=signal.SIGTERM)
    assert code == 0
    assert "another program holds its write lock; nobody is answered until it is free" in said


def test_after_an_auditor_s_long_transaction_the_wal_is_short_again(memory: Path) -> None:
    path = memory / "log.sqlite"
    wal = memory / "log.sqlite-wal"
    with Log.open(path, projections=[Holders()]) as log, LogReader.open(path) as auditor:
        log.append(many_held(10))
        with auditor.snapshot():
            audited = auditor.head()
            for first in range(10, 10_000, 5):
                log.append(many_held(5, first))
            assert wal.stat().st_size > 2 * WAL_LIMIT
            assert auditor.head() == audited
            assert len(list(auditor.read())) == 10
        assert auditor.size == 10_000
        for first in range(10_000, 10_300, 5):
            log.append(many_held(5, first))
            assert wal.stat().st_size <= 4 * 2 * WAL_LIMIT
        assert wal.stat().st_size <= WAL_LIMIT
        assert log.root_at(audited.size) == audited.root


def test_readers_that_come_and_go_do_not_let_the_wal_grow(memory: Path) -> None:
    path = memory / "log.sqlite"
    wal = memory / "log.sqlite-wal"
    with Log.open(path, projections=[Holders()]) as log:
        log.append(many_held(5))
        with readers(path) as running:
            for reader in running:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "5\n"
            for first in range(5, 15_000, 5):
                log.append(many_held(5, first))
            assert wal.stat().st_size < WAL_LIMIT
