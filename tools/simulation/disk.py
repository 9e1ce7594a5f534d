"""Simulated disks: the log's and the outboxes', with what a crash or a full disk does to them.

Rule 1: both are the real ones: the log on a real file in memory, an outbox on SQLite in memory. Rule 2:
what was synced stays. A write that a crash interrupts ends anywhere: the log's WAL is cut off at any octet
of it, and the real SQLite finds out what is there. Rule 3: what the reference is told is on the disk, was
read from it.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from eventlog.lock import WriterLock
from eventlog.reading import LogReader
from eventlog.record import Record
from eventlog.store import Answer, AppendFailed, Log, LogBusy
from eventlog.verify import verify
from tools.simulation.world import MILLISECOND_NS, SECOND_NS, Killed, Process, World
from tracker.outbox import Outbox, OutboxLocked, _prepare
from tracker.projections import PROJECTIONS

BUSY_NS: Final = 5 * SECOND_NS


class LogDisk:
    """The tracker's disk. `appending`: what somebody tries; `committed`: what is there since."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.full = False
        self.busy_until_ns = 0
        self.slow_until_ns = 0
        self.size = 0
        self.appending: Callable[[Sequence[Record]], object] = lambda _: None
        self.committed: Callable[[Sequence[Record], Sequence[Answer]], object] = lambda _, __: None
        self.opened = type("OpenedLog", (SimulatedLog,), {"disk": self})
        memory = Path("/dev/shm")  # noqa: S108 - a directory of our own in it, removed at the end
        self._directory = Path(
            tempfile.mkdtemp(prefix="porthold-simulate-", dir=memory if memory.is_dir() else None)
        )
        self._lives = 0
        self._chance = world.chance("log disk")
        self.path = self._directory / "0.sqlite"
        self.path.write_bytes(_empty_log())

    def before_writing(self, process: Process) -> None:
        """What can go wrong then."""
        process.call()
        if self.full:
            raise AppendFailed("database or disk is full")
        if self.world.now_ns < self.busy_until_ns:
            process.call(min(BUSY_NS, self.busy_until_ns - self.world.now_ns))
            if self.world.now_ns < self.busy_until_ns:
                raise LogBusy("another program holds its write lock")

    def sync_ns(self) -> int:
        """How long the next sync takes."""
        if self.world.now_ns < self.slow_until_ns:
            return self._chance.randrange(SECOND_NS // 2, 3 * SECOND_NS)
        return self._chance.randrange(MILLISECOND_NS // 5, 4 * MILLISECOND_NS)

    def begun_writing(self) -> bool:
        """Whether a write that a crash interrupts has left anything at all on the disk."""
        return self._chance.random() < 0.7

    def wal_size(self) -> int:
        """Octets of the write-ahead log."""
        try:
            return Path(f"{self.path}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def tear(self, before: int) -> None:
        """The last transaction, which began at that size of the WAL, was written up to some octet."""
        kept = self._chance.randrange(before, self.wal_size() + 1)
        self._lives += 1
        old, self.path = self.path, self._directory / f"{self._lives}.sqlite"
        shutil.copy(old, self.path)
        wal = old.with_name(old.name + "-wal").read_bytes()[:kept]
        self.path.with_name(self.path.name + "-wal").write_bytes(wal)

    def found(self, reader: LogReader, answers: Sequence[Answer]) -> None:
        """Tell the reference what is there since the last time."""
        fresh = [_record(entry.record) for entry in reader.read(self.size)]
        there = [it for it in answers if reader.answer(it.name, it.incarnation, it.sequence) is not None]
        self.size += len(fresh)
        self.committed(fresh, there)

    def records(self) -> list[Record]:
        """All of them, read from the file."""
        with LogReader.open(self.path) as reader:
            return [_record(entry.record) for entry in reader.read()]

    def faults(self) -> list[str]:
        """What `porthold verify` finds."""
        with LogReader.open(self.path) as reader:
            return [str(fault) for fault in verify(reader, PROJECTIONS).faults]

    def remove(self) -> None:
        """End of the run."""
        shutil.rmtree(self._directory)


@cache
def _empty_log() -> bytes:
    """The file that the real log makes when there is none: the same for all runs, and made once for all."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "empty.sqlite"
        Log.open(path, projections=PROJECTIONS).close()
        return path.read_bytes()


def _record(record: Record | None) -> Record:
    if record is None:
        raise ValueError("a record without bytes")
    return record


class SimulatedLog(Log):
    """The real log; each transaction takes its time, and can be the last thing that its process does."""

    disk: ClassVar[LogDisk]

    def append(self, records: Sequence[Record], **rest: Any) -> range:  # noqa: ANN401 - as the real one has them
        disk = self.disk
        rest["answers"] = answers = list(rest.get("answers", ()))
        disk.appending(records)
        try:
            positions = super().append(records, **rest)
        except Killed:
            with LogReader.open(disk.path) as reader:
                disk.found(reader, answers)
            raise
        disk.found(self, answers)
        disk.world.process.call()
        return positions

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        disk, killed = self.disk, False
        process = disk.world.process
        if hasattr(self, "_tail"):  # opening it writes nothing
            try:
                disk.before_writing(process)
            except AppendFailed:
                self._fail()
                raise
        before = disk.wal_size()
        transaction: AbstractContextManager[None] = super()._transaction()
        with transaction:
            yield
            try:
                process.call(disk.sync_ns())
            except Killed:
                if not disk.begun_writing():
                    raise
                killed = True
        if killed:
            disk.tear(before)
            self.close()
            raise Killed


# --- outboxes ---------------------------------------------------------------------------------------------


class _NoLock(WriterLock):
    """The simulation's processes are no processes: their lock is `OutboxDisk.user`."""

    def __init__(self) -> None:
        """Without a file."""

    def release(self) -> None:
        """Nothing is held."""


@dataclass
class OutboxDisk:
    """A worker's disk with its outbox; `lost` counts how often it was lost."""

    limit: int
    connection: sqlite3.Connection | None = None
    user: Process | None = None
    lost: int = 0
    incarnations: list[int] = field(default_factory=list)

    def lose(self) -> None:
        """The file is gone."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            self.lost += 1

    def fill(self, *, full: bool) -> None:
        """No page more fits, or again as many as one likes."""
        if self.connection is not None:
            (pages,) = self.connection.execute("PRAGMA page_count").fetchone()
            self.connection.execute(f"PRAGMA max_page_count = {pages if full else 1_000_000}")

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()


class SimulatedOutbox(Outbox):
    """The real outbox; each write takes its time, and can be the last thing that its process does."""

    process: Process
    disk: OutboxDisk
    kept: Callable[[int, Sequence[bytes]], object]
    renamed: Callable[[int, int], object]

    @classmethod
    def on(cls, disk: OutboxDisk, process: Process, worker: str, now_ns: int) -> Self:
        process.call()
        if disk.user is not None and disk.user.alive:
            raise OutboxLocked(f"the outbox is used by {disk.user.name}")
        if disk.connection is None:
            disk.connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        with suppress(sqlite3.OperationalError):
            disk.connection.execute("ROLLBACK")  # what a kill interrupted
        path = Path(f"{worker}.outbox")
        _prepare(path, disk.connection, worker, now_ns)
        made = cls(path, disk.connection, _NoLock(), disk.limit)
        made.process, made.disk = process, disk
        disk.user = process
        if made.incarnation not in disk.incarnations:
            disk.incarnations.append(made.incarnation)
        return made

    def put(self, messages: Sequence[bytes], wall_ns: int) -> int:
        self.process.call(MILLISECOND_NS)
        first = super().put(messages, wall_ns)
        self.kept(first, messages)
        self.process.call()
        return first

    def remove(self, sequences: Iterable[int]) -> None:
        self.process.call(MILLISECOND_NS)
        super().remove(sequences)
        self.process.call()

    def rename(self, incarnation: int) -> None:
        self.process.call()
        before = self.incarnation
        super().rename(incarnation)
        self.renamed(before, incarnation)
        self.disk.incarnations.append(incarnation)
        self.process.call()

    def close(self) -> None:
        """The connection is the disk's."""
        self.process.call()
