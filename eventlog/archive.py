r"""An archive: the records of a closed segment in a file of their own, with what proves them.

Rule 1: it can be checked alone: the hashes left of its records, its records and those right of them lead to
the root of a checkpoint within. It can be checked against its log: a record there says its header's hash.
Rule 2: the header's hash covers everything: each run of records stands in it with its own hash.
Rule 3: an archive is written once, whole, and read again before it gets its name.

    "eventlog archive 1\n", runs as columns.py packs them, the header (msgpack), where the header begins
    header: [first, end, peaks, root, [[first, count, offset, length, hash] ...], checkpoint | nil, path]
    peaks: the roots of the complete subtrees over the records before `first`, widest first
    root: over everything up to `end`; path: the consistency proof from there to the checkpoint's
"""

import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgpack

from eventlog import merkle
from eventlog.columns import RUN_LIMIT, ColumnsDamaged, Place, pack, unpack
from eventlog.disk import sync
from eventlog.segments import Span

DIRECTORY_SUFFIX: Final = ".archives"
"""A log's archives lie in the directory of its name with this at the end."""

_MAGIC: Final = b"eventlog archive 1\n"
_TRAILER: Final = struct.Struct(">Q")
_HEADER_LIMIT: Final = 16 * 1024 * 1024
RUN_RECORDS: Final = 256
"""A run ends with so many records: few enough that one is read in 2 ms, for 4 bytes a record more than with
thousands (31.6 instead of 27.8, measured on tests/bench/story.py)."""
_RUN_BYTES: Final = 4 * 1024 * 1024
"""Or when its records are about so many bytes."""


class ArchiveDamaged(Exception):
    """A file that is no archive, or not the one that is wanted. `span`: where, if the rest is good."""

    def __init__(self, detail: str, span: Span | None = None) -> None:
        super().__init__(detail)
        self.span = span


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run of records is in the file, and the hash of its packed bytes."""

    first: int
    count: int
    offset: int
    length: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What an archive says of itself, see the module."""

    span: Span
    peaks: tuple[bytes, ...]
    root: bytes
    runs: tuple[Run, ...]
    note: bytes | None
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Proofs:
    """What is written into an archive beside its records."""

    peaks: Sequence[bytes]
    root: bytes
    note: bytes | None = None
    path: Sequence[bytes] = ()


class Archive:
    """An archive, open for reading. Use as a context manager, or close it."""

    def __init__(self, path: Path, descriptor: int, header: Header, digest: bytes) -> None:
        self.path = path
        self.header = header
        self.hash = digest
        self._descriptor = descriptor
        self._firsts = [run.first for run in header.runs]
        self._unpacked: tuple[int, list[Place]] = (-1, [])

    @classmethod
    def open(cls, path: Path, wanted_hash: bytes | None = None) -> Self:
        """Open an archive; `wanted_hash`: of its header. Raises ArchiveDamaged, also where there is none."""
        try:
            # Not blocking: a pipe in its place would let nobody go on.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ArchiveDamaged(f"{path}: {error.strerror}") from error
        try:
            data = _header_bytes(descriptor)
            digest = sha256(data).digest()
            if wanted_hash is not None and digest != wanted_hash:
                raise ArchiveDamaged("its header is not the one that the log speaks of")
            return cls(path, descriptor, _parse_header(data, os.fstat(descriptor).st_size), digest)
        except (ArchiveDamaged, OSError) as error:
            os.close(descriptor)
            raise ArchiveDamaged(f"{path}: {error}") from error

    def close(self) -> None:
        """End the use of the file; harmless when done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, first: int, end: int) -> Iterator[tuple[int, Place]]:
        """The positions from `first` up to, not including, `end`, as far as they lie in this archive.

        Raises ArchiveDamaged at the first run that cannot be read.
        """
        position = max(first, self.header.span.first)
        end = min(end, self.header.span.end)
        while position < end:
            number = bisect_right(self._firsts, position) - 1
            run = self.header.runs[number]
            places = self._run(number)
            for place in places[position - run.first : end - run.first]:
                yield position, place
                position += 1

    def _run(self, number: int) -> list[Place]:
        if self._unpacked[0] == number:
            return self._unpacked[1]
        run = self.header.runs[number]
        try:
            packed = os.pread(self._descriptor, run.length, run.offset)
            if sha256(packed).digest() != run.hash:
                raise ColumnsDamaged("their bytes are not those that were written")
            places = unpack(packed)
            if len(places) != run.count:
                raise ColumnsDamaged(f"{len(places)} records where {run.count} are said")
        except (OSError, ColumnsDamaged) as error:
            span = Span(run.first, run.first + run.count)
            raise ArchiveDamaged(f"{self.path}: {span}: {error}", span) from error
        self._unpacked = number, places
        return places


def archives_of(log: Path) -> Path:
    """The directory of a log's archives."""
    return log.with_name(log.name + DIRECTORY_SUFFIX)


def archive_name(span: Span, digest: bytes) -> str:
    """What an archive is called: by its positions and its header's hash."""
    return f"{span.first:012}-{span.end:012}-{digest.hex()[:16]}.archive"


def write_archive(directory: Path, span: Span, places: Iterable[Place], proofs: Proofs) -> Archive:
    """Write an archive there, read it again, and open it. Raises OSError, and RecordError for no record."""
    directory.mkdir(mode=0o700, exist_ok=True)
    sync(directory.parent)  # A power failure would take the directory's name away, and all archives with it.
    partial = directory / f".{span.first:012}.partial"
    try:
        _write(partial, span, places, proofs)
        with Archive.open(partial) as archive:
            check_records(archive)
            path = directory / archive_name(span, archive.hash)
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    sync(directory)
    return Archive.open(path)


def check_records(archive: Archive) -> int:
    """Check every run and record and the tree over them; returns how many records are redacted.

    Raises ArchiveDamaged at the first bad run.
    """
    header = archive.header
    try:
        frontier = merkle.Frontier(header.span.first, header.peaks)
    except ValueError as error:
        raise ArchiveDamaged(f"{archive.path}: {error}") from error
    redacted = 0
    for _, place in archive.read(header.span.first, header.span.end):
        redacted += place.data is None
        frontier.append(place.leaf)
    if frontier.root() != header.root:
        raise ArchiveDamaged(f"{archive.path}: its records do not lead to its root")
    return redacted


def _write(partial: Path, span: Span, places: Iterable[Place], proofs: Proofs) -> None:
    with suppress(FileNotFoundError):
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(_MAGIC)
        runs = []
        first = span.first
        for run in _cut_into_runs(span.first, places):
            packed = pack(run)
            runs.append((first, len(run), file.tell(), len(packed), sha256(packed).digest()))
            file.write(packed)
            first += len(run)
        if first != span.end:
            raise ValueError(f"{span} were to be archived, up to {first} there were records")
        at = file.tell()
        layout = (span.first, span.end, list(proofs.peaks), proofs.root, runs, proofs.note, list(proofs.path))
        file.write(msgpack.packb(layout) + _TRAILER.pack(at))
        file.flush()
        os.fsync(file.fileno())


def _cut_into_runs(first: int, places: Iterable[Place]) -> Iterator[list[Place]]:
    """Cut only where a group of the tree ends: where a run is damaged, stored hashes stand in for it."""
    run: list[Place] = []
    size = 0
    for end, place in enumerate(places, first + 1):
        run.append(place)
        size += len(place.data or b"")
        if end % RUN_RECORDS == 0 or (size >= _RUN_BYTES and end % (1 << merkle.STRIDE) == 0):
            yield run
            run, size = [], 0
    if run:
        yield run


def _header_bytes(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    (at,) = _TRAILER.unpack(_exactly(descriptor, _TRAILER.size, size - _TRAILER.size))
    if _exactly(descriptor, len(_MAGIC), 0) != _MAGIC:
        raise ArchiveDamaged("it is no archive")
    length = size - _TRAILER.size - at
    if not 0 < length <= _HEADER_LIMIT:
        raise ArchiveDamaged("it has no header, or is cut off")
    return _exactly(descriptor, length, at)


def _exactly(descriptor: int, length: int, offset: int) -> bytes:
    data = os.pread(descriptor, length, offset) if offset >= 0 else b""
    if len(data) != length:
        raise ArchiveDamaged("it is no archive, or is cut off")
    return data


def _parse_header(data: bytes, file_size: int) -> Header:
    try:
        layout: Any = msgpack.unpackb(data, use_list=False, raw=False)
        first, end, peaks, root, runs, note, path = layout
        header = Header(Span(first, end), peaks, root, tuple(Run(*run) for run in runs), note, path)
        _check_header(header, file_size)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ArchiveDamaged(f"its header is none: {error}") from error
    return header


def _check_header(header: Header, file_size: int) -> None:
    """Raise ValueError unless its runs follow each other from the first position to the last."""
    runs = [(run.first, run.count, run.offset, run.length) for run in header.runs]
    numbers: tuple[object, ...] = (header.span.first, header.span.end, *chain.from_iterable(runs))
    if not all(isinstance(it, int) and 0 <= it < 2**62 for it in numbers):
        raise ValueError("a number is none")
    hashes: tuple[object, ...] = (
        *header.peaks,
        header.root,
        *header.path,
        *(run.hash for run in header.runs),
    )
    if not all(isinstance(it, bytes) and len(it) == merkle.HASH_SIZE for it in hashes):
        raise ValueError("a hash is none")
    if header.note is not None and not isinstance(header.note, bytes):
        raise ValueError("its checkpoint is none")
    position = header.span.first
    for run in header.runs:
        if run.first != position or not 0 < run.count <= RUN_LIMIT:
            raise ValueError(f"a run from {run.first} on, at {position}")
        if run.offset + run.length > file_size:
            raise ValueError(f"a run of {run.length} bytes, in a file of {file_size}")
        position += run.count
    if position != header.span.end:
        raise ValueError(f"its runs end at {position}")
