"""What a worker has to say to the tracker and has no answer to yet, on its own disk.

Rule 1: what `put` took is there after a power cut; the sequence goes with it in the same transaction. Rule 2:
one process at a time, by a lock that ends with it: so a worker's name has one speaker. Rule 3: it is bounded,
and full is said, never solved by dropping; a tenth is kept for reports, because a claim can be refused but a
fact can't be made not to have happened.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from eventlog.lock import LogLocked, WriterLock

LIMIT: Final = 10_000
_LAYOUT: Final = 1
_FULL_CODES: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})


class OutboxFull(Exception):
    """No room for the message: nothing of it was kept."""


class OutboxLocked(Exception):
    """Another process uses this outbox."""


class OutboxUnreadable(Exception):
    """The file is no outbox, or another worker's."""


class Outbox:
    """The file; `incarnation` says which one it is: wall time, in ns, of its making."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: WriterLock, limit: int) -> None:
        self.path = path
        self.limit = limit
        self._connection = connection
        self._lock = lock
        self.incarnation, self.next_sequence = connection.execute(
            "SELECT incarnation, next_sequence FROM identity"
        ).fetchone()
        self.size: int = connection.execute("SELECT count(*) FROM messages").fetchone()[0]

    @classmethod
    def open(cls, path: Path, *, worker: str, now_ns: int, limit: int = LIMIT) -> Self:
        """The outbox of `worker`, made if it is missing. OutboxLocked, OutboxUnreadable."""
        try:
            lock = WriterLock(path)
        except LogLocked as error:
            raise OutboxLocked(f"{path} is used by {error.holder or 'another process'}") from error
        except OSError as error:
            raise OutboxUnreadable(f"{path}: {error.strerror}") from error
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                _prepare(path, connection, worker, now_ns)
                return cls(path, connection, lock, limit)
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            lock.release()
            raise OutboxUnreadable(f"{path}: {error}") from error
        except BaseException:
            lock.release()
            raise

    @property
    def room_for_claims(self) -> bool:
        """Whether something may be put that can as well be refused."""
        return self.size < self.limit - self.limit // 10

    @property
    def is_drained(self) -> bool:
        """Whether it is far from full; what was full is said to be over only then, not at each message."""
        return self.size <= self.limit // 2

    def put(self, messages: Sequence[bytes], wall_ns: int) -> int:
        """Keeps them, on the disk when it returns; the first one's sequence. OutboxFull: none was kept."""
        if self.size + len(messages) > self.limit:
            raise OutboxFull(f"{self.path} has {self.size} messages, its limit is {self.limit}")
        first: int = self.next_sequence
        rows = [(first + index, wall_ns, message) for index, message in enumerate(messages)]
        with self._transaction():
            self._connection.executemany("INSERT INTO messages VALUES (?, ?, ?)", rows)
            self._connection.execute("UPDATE identity SET next_sequence = ?", (first + len(rows),))
        self.next_sequence = first + len(rows)
        self.size += len(rows)
        return first

    def remove(self, sequences: Iterable[int]) -> None:
        """Forgets what has its answer. OutboxFull: no room even for that on the disk; try again later."""
        rows = [(sequence,) for sequence in sequences]
        with self._transaction():
            self._connection.executemany("DELETE FROM messages WHERE sequence = ?", rows)
        self.size -= len(rows)

    def messages(self) -> list[tuple[int, int, bytes]]:
        """(sequence, wall time of its submission, message) of all, in order."""
        return self._connection.execute("SELECT * FROM messages ORDER BY sequence").fetchall()

    def rename(self, incarnation: int) -> None:
        """Another incarnation, before anything of this one was taken."""
        with self._transaction():
            self._connection.execute("UPDATE identity SET incarnation = ?", (incarnation,))
        self.incarnation = incarnation

    def close(self) -> None:
        self._connection.close()
        self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; a full disk is OutboxFull, anything else that fails ends the process."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if error.sqlite_errorcode in _FULL_CODES:
                raise OutboxFull(f"{self.path}: {error}") from error
            raise


def _prepare(path: Path, connection: sqlite3.Connection, worker: str, now_ns: int) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout not in (0, _LAYOUT):
        raise OutboxUnreadable(f"{path} has layout {layout}, known here is {_LAYOUT}")
    if layout == 0:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE identity (worker TEXT NOT NULL, incarnation INTEGER NOT NULL,"
            " next_sequence INTEGER NOT NULL) STRICT"
        )
        connection.execute(
            "CREATE TABLE messages (sequence INTEGER PRIMARY KEY, wall_ns INTEGER NOT NULL,"
            " message BLOB NOT NULL) STRICT"
        )
        connection.execute("INSERT INTO identity VALUES (?, ?, 1)", (worker, now_ns))
        connection.execute(f"PRAGMA user_version = {_LAYOUT}")
        connection.execute("COMMIT")
    (found,) = connection.execute("SELECT worker FROM identity").fetchone()
    if found != worker:
        raise OutboxUnreadable(f"{path} is the outbox of worker {found!r}, not of {worker!r}")
