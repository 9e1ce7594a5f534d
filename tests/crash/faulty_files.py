"""SQLite's files under observation: a diary of what is done to them, and failures when told.

Rule 1: nothing is simulated here. SQLite works on real files through its own unix layer; this layer stands
between the two, writes down what passes, and lets a chosen operation fail as a disk would.
Rule 2: the diary is in the order in which things happened; `mark` puts what the test knows among it.
Rule 3: what fails has not happened, or by half, and the diary says exactly that.

The layer is a VFS of apsw. It must be Debian's python3-apsw: that one shares libsqlite3 with Python's
sqlite3, so that a VFS made there serves here. PyPI's has an SQLite of its own.
"""

import errno
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

DEBIAN_PACKAGES = "/usr/lib/python3/dist-packages"


def _debian_apsw() -> Any:
    spec = importlib.machinery.PathFinder.find_spec("apsw", [DEBIAN_PACKAGES])
    if spec is None or spec.loader is None:
        raise ImportError("python3-apsw of this Python is missing: apt-get install python3-apsw")
    module = importlib.util.module_from_spec(spec)
    sys.modules["apsw"] = module
    spec.loader.exec_module(module)
    return module


apsw = _debian_apsw()


@dataclass(frozen=True, slots=True)
class Found:
    """A file that was there, whole and on the disk, before the first operation on it."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Created:
    name: str


@dataclass(frozen=True, slots=True)
class Deleted:
    name: str


@dataclass(frozen=True, slots=True)
class Written:
    name: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncated:
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """`done` is False when the disk refused: what was waiting is there or not, and waits no longer."""

    name: str
    done: bool


@dataclass(frozen=True, slots=True)
class NamesSynced:
    """The directory's."""


@dataclass(frozen=True, slots=True)
class Marked:
    """What the test knew at this moment."""

    what: object


Operation: TypeAlias = Found | Created | Deleted | Written | Truncated | Synced | NamesSynced | Marked
Kind: TypeAlias = Literal["write", "truncate", "sync", "open", "delete"]
Reason: TypeAlias = Literal["full", "io", "read-only"]


@dataclass(slots=True)
class Fault:
    """Fails operations: the first one after `after` others of these kinds, or from there on all."""

    reason: Reason
    kinds: frozenset[Kind]
    after: int
    lasting: bool = False
    half: bool = False
    """Of a failing write the first half is done."""
    hits: int = field(default=0, init=False)

    def strikes(self, kind: Kind) -> bool:
        if kind not in self.kinds or (self.hits and not self.lasting):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.hits += 1
        return True


class _Injected(Exception):
    """Told to fail; SQLite sees its code."""


class FaultyFiles:
    """While entered, all SQLite files in `directory` that this process opens are under observation."""

    _made = 0

    def __init__(self, directory: Path) -> None:
        self.diary: list[Operation] = []
        self.fault: Fault | None = None
        self.directory = directory
        self._known: set[str] = set()
        self._surprises: list[BaseException] = []
        self._pwrite, self._fsync = os.pwrite, os.fsync

    def __enter__(self) -> Self:
        FaultyFiles._made += 1
        self._layer = _Layer(self, f"faulty-{FaultyFiles._made}")
        for path in sorted(self.directory.iterdir()):
            if not path.name.endswith("-shm"):  # memory of the processes that use it, no file to be kept
                self._find(path)
        os.pwrite, os.fsync = self._observe_pwrite, self._observe_fsync
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.pwrite, os.fsync = self._pwrite, self._fsync
        self._layer.unregister()
        if self._surprises:
            raise self._surprises[0]

    def mark(self, what: object) -> None:
        self.diary.append(Marked(what))

    def handle_open(self, name: str) -> None:
        """Before it is opened: write down what it is at that moment."""
        path = self.directory / name
        if not path.exists():
            self.fail_if_told("open")
            self.diary.append(Created(name))
            self._known.add(name)
        elif name not in self._known:
            self._find(path)

    def _find(self, path: Path) -> None:
        self.diary.append(Found(path.name, path.read_bytes()))
        self._known.add(path.name)

    def fail_if_told(self, kind: Kind, by_half: Callable[[], None] = lambda: None) -> None:
        if self.fault is None or not self.fault.strikes(kind):
            return
        if self.fault.half:
            by_half()
        raise _failure(kind, self.fault.reason)

    def _observe_pwrite(self, descriptor: int, data: Any, offset: int, /) -> int:
        """What the store writes to SQLite's files by itself."""
        written = self._pwrite(descriptor, data, offset)
        if (name := self._name_of(descriptor)) is not None:
            self.diary.append(Written(name, offset, bytes(data[:written])))
        return written

    def _observe_fsync(self, fd: Any) -> None:
        name = self._name_of(fd)
        if name is None:
            self._fsync(fd)
            return
        try:
            self.fail_if_told("sync")
        except _Injected as failure:
            self.diary.append(Synced(name, done=False))
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from failure
        self._fsync(fd)
        self.diary.append(Synced(name, done=True))

    def _name_of(self, descriptor: int) -> str | None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return path.name if path.parent == self.directory and path.name in self._known else None

    def handle_exception(self, error: BaseException) -> None:
        """SQLite gets an apsw.Error as its code, also the unix layer's own; others come up at the end."""
        if not isinstance(error, apsw.Error):
            self._surprises.append(error)


def _failure(kind: Kind, reason: Reason) -> BaseException:
    base, extended = {
        "full": (apsw.FullError, apsw.SQLITE_FULL),
        "read-only": (apsw.ReadOnlyError, apsw.SQLITE_READONLY),
        "io": (apsw.IOError, _IO_CODES[kind]),
    }[reason]
    injected: type[BaseException] = type("Injected", (_Injected, base), {"extendedresult": extended})
    return injected(f"{kind}: {reason}")


_IO_CODES: dict[Kind, int] = {
    "write": apsw.SQLITE_IOERR_WRITE,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "open": apsw.SQLITE_CANTOPEN,
    "delete": apsw.SQLITE_IOERR_DELETE,
}


class _Layer(apsw.VFS):  # type: ignore[misc, name-defined] # apsw has no types here
    def __init__(self, files: FaultyFiles, name: str) -> None:
        self._files = files
        super().__init__(name, "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        path = None if name is None else Path(name if isinstance(name, str) else name.filename())
        if path is None or path.parent != self._files.directory:
            return apsw.VFSFile("unix", name, flags)
        self._files.handle_open(path.name)
        return _File(self._files, path.name, name, flags)

    def xDelete(self, path: str, syncdir: bool) -> None:
        observed = Path(path).parent == self._files.directory
        if observed:
            self._files.fail_if_told("delete")
        super().xDelete(path, syncdir)
        if observed:
            self._files.diary.append(Deleted(Path(path).name))
            if syncdir:
                self._files.diary.append(NamesSynced())

    def excepthook(self, _kind: object, error: BaseException, _trace: object) -> None:
        self._files.handle_exception(error)


class _File(apsw.VFSFile):  # type: ignore[misc, name-defined] # apsw has no types here
    def __init__(self, files: FaultyFiles, short_name: str, name: object, flags: list[int]) -> None:
        self._files = files
        self._name = short_name
        # With the first sync of a journal or WAL that it may have made, the unix layer syncs the directory.
        self._names_wait = bool(
            flags[0] & apsw.SQLITE_OPEN_CREATE
            and flags[0] & (apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL)
        )
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._files.fail_if_told("write", lambda: self._write(data[: len(data) // 2], offset))
        self._write(data, offset)

    def xTruncate(self, size: int) -> None:
        self._files.fail_if_told("truncate")
        super().xTruncate(size)
        self._files.diary.append(Truncated(self._name, size))

    def xSync(self, flags: int) -> None:
        try:
            self._files.fail_if_told("sync")
        except _Injected:
            self._files.diary.append(Synced(self._name, done=False))
            raise
        super().xSync(flags)
        self._files.diary.append(Synced(self._name, done=True))
        if self._names_wait:
            self._files.diary.append(NamesSynced())
            self._names_wait = False

    def _write(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._files.diary.append(Written(self._name, offset, bytes(data)))

    def excepthook(self, _kind: object, error: BaseException, _trace: object) -> None:
        self._files.handle_exception(error)
