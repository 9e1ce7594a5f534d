"""What a disk may hold after the power failed, computed from the diary of what was done to its files.

Rule 1: what was synced is there. Rule 2: of what was not, anything may be: each sector of each write by
itself, in any mixture of its versions, torn within, lengths without contents. Rule 3: what waited when a sync
failed may never be written, although every reader sees it (Linux takes it for written: "fsyncgate"); only a
new write to the same page brings the page as it is in memory to the disk. Rule 4: names come and go in order,
but as late as the next sync of their directory; SQLite's unix layer syncs it with the first sync of a new
journal or WAL.
"""

from collections.abc import Callable, Iterable
from random import Random
from typing import TypeAlias, assert_never

from tests.crash.faulty_files import (
    Created,
    Deleted,
    Found,
    Marked,
    NamesSynced,
    Operation,
    Synced,
    Truncated,
    Written,
)

SECTOR_SIZE = 512
PAGE_SIZE = 4096

Lands: TypeAlias = Callable[[], bool]

Waiting: TypeAlias = tuple[int, bytes] | int
"""A write at an offset, or a truncation to a size."""


class CrashedDisk:
    """Follows a diary up to the crash; then `files` says, once, what is left."""

    def __init__(self, diary: Iterable[Operation], chance: Random) -> None:
        self._chance = chance
        self._likeliness = chance.choice((0.0, 1.0, chance.random(), chance.random()))
        self._names: dict[str, _Content] = {}
        self._names_on_disk: dict[str, _Content] = {}
        self._names_waiting: list[tuple[str, _Content | None]] = []
        for operation in diary:
            self._handle(operation)

    def files(self) -> dict[str, bytes]:
        kept = self._chance.randint(0, len(self._names_waiting))
        self._settle_names(self._names_waiting[:kept])
        return {name: content.after_crash() for name, content in self._names_on_disk.items()}

    def _handle(self, operation: Operation) -> None:
        match operation:
            case Found(name, data):
                self._names[name] = self._names_on_disk[name] = _Content(data, self._lands, self._chance)
            case Created(name):
                self._names[name] = _Content(b"", self._lands, self._chance)
                self._names_waiting.append((name, self._names[name]))
            case Deleted(name):
                self._names_waiting.append((name, None))
                del self._names[name]
            case Written(name, offset, data):
                self._names[name].write(offset, data)
            case Truncated(name, size):
                self._names[name].truncate(size)
            case Synced(name, done):
                self._names[name].sync(done=done)
            case NamesSynced():
                self._settle_names(self._names_waiting)
            case Marked():
                pass
            case _:
                assert_never(operation)

    def _lands(self) -> bool:
        return self._chance.random() < self._likeliness

    def _settle_names(self, changes: list[tuple[str, "_Content | None"]]) -> None:
        for name, content in changes:
            if content is None:
                self._names_on_disk.pop(name, None)
            else:
                self._names_on_disk[name] = content
        self._names_waiting = []


class _Content:
    """One file: as its readers see it, as it is on the disk, and what waits to get there."""

    def __init__(self, data: bytes, lands: Lands, chance: Random) -> None:
        self._memory = bytearray(data)
        self._disk = bytearray(data)
        self._waiting: list[Waiting] = []
        self._lost: set[int] = set()
        self._lands = lands
        self._chance = chance

    def write(self, offset: int, data: bytes) -> None:
        _put(self._memory, offset, data)
        touched = range(offset // PAGE_SIZE, (offset + len(data) - 1) // PAGE_SIZE + 1)
        if self._lost.isdisjoint(touched):
            self._waiting.append((offset, data))
            return
        self._lost.difference_update(touched)
        first, end = touched.start * PAGE_SIZE, touched.stop * PAGE_SIZE
        self._waiting.append((first, bytes(self._memory[first:end])))

    def truncate(self, size: int) -> None:
        del self._memory[size:]
        self._waiting.append(size)

    def sync(self, *, done: bool) -> None:
        if done:
            for change in self._waiting:
                self._land(change)
        else:
            self._land_some()
            self._lost = {
                page
                for page in range(-(-len(self._memory) // PAGE_SIZE))
                if self._page(self._memory, page) != self._page(self._disk, page)
            }
        self._waiting = []

    def after_crash(self) -> bytes:
        self._land_some()
        if len(self._disk) < len(self._memory) and self._lands():
            self._disk.extend(bytes(len(self._memory) - len(self._disk)))
        return bytes(self._disk)

    def _land(self, change: Waiting) -> None:
        match change:
            case int(size):
                del self._disk[size:]
            case (offset, data):
                _put(self._disk, offset, data)

    def _land_some(self) -> None:
        for change in self._waiting:
            match change:
                case int():
                    if self._lands():
                        self._land(change)
                case (offset, data):
                    for start, sector in _sectors(offset, data):
                        if self._lands():
                            torn = self._chance.random() < 0.05
                            end = self._chance.randrange(len(sector)) if torn else len(sector)
                            _put(self._disk, start, sector[:end])

    @staticmethod
    def _page(content: bytearray, number: int) -> bytes:
        return bytes(content[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if data:
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data


def _sectors(offset: int, data: bytes) -> Iterable[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size = min(SECTOR_SIZE - (offset + at) % SECTOR_SIZE, len(data) - at)
        yield offset + at, data[at : at + size]
        at += size
