"""A copy of a log, taken while it is written, and verified before it is called one.

Rule: the target's name exists only when the copy under it has passed `verify` and is on the disk. A backup
that nobody has read is a hope.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from eventlog.archive import Archive, ArchiveDamaged, archive_name, archives_of
from eventlog.disk import sync
from eventlog.note import VerifyingKey
from eventlog.projection import Projection
from eventlog.reading import LogReader, LogUnreadable, Progress, ignore_progress
from eventlog.verify import Report, verify


class BackupFailed(Exception):
    """There is no backup. What there was at the target is untouched."""


def backup(
    path: Path,
    target: Path,
    projections: Iterable[Projection] = (),
    keys: Sequence[VerifyingKey] = (),
    *,
    progress: Progress = ignore_progress,
) -> Report:
    """Copy the log as of now to `target`, which must not exist; returns what `verify` said of the copy.

    Its archives are copied too, to the directory beside `target` where they are looked for.

    `progress` tells of the verifying, which takes longer than the copying. Raises BackupFailed and, for the
    source, LogUnreadable.
    """
    if target.exists():
        raise BackupFailed(f"{target} exists already")
    partial = target.with_name(f".{target.name}.partial")
    archives = archives_of(target)
    if archives.exists():
        raise BackupFailed(f"{archives} exists already")
    try:
        _remove(partial)
        _copy(path, partial)
        _copy_archives(path, partial)
        report = _verified(partial, projections, keys, progress)
        if archives_of(partial).exists():
            archives_of(partial).rename(archives)
        _give_name(partial, target)
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
        raise BackupFailed(f"{target}: {error}") from error
    finally:
        with suppress(OSError):
            _remove(partial)
    return report


def _copy(path: Path, partial: Path) -> None:
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with LogReader.open(path) as reader, closing(sqlite3.connect(partial)) as copy:
        reader.connection_for_checks().backup(copy)
        # One file: the copy has no WAL that could be left behind when it is moved.
        copy.execute("PRAGMA journal_mode = DELETE")
    sync(partial)


def _copy_archives(path: Path, partial: Path) -> None:
    with LogReader.open(partial) as copy:
        named = [(it.span, it.archive) for it in copy.life().segments if it.archive is not None]
    if not named:
        return
    directory = archives_of(partial)
    directory.mkdir(mode=0o700)
    for span, digest in named:
        name = archive_name(span, digest)
        try:  # Looked at first: of a device in its place no copy would ever end.
            Archive.open(archives_of(path) / name, digest).close()
        except ArchiveDamaged as error:
            raise BackupFailed(str(error)) from error
        shutil.copy2(archives_of(path) / name, directory / name)
        sync(directory / name)
    sync(directory)


def _verified(
    partial: Path, projections: Iterable[Projection], keys: Sequence[VerifyingKey], progress: Progress
) -> Report:
    try:
        with LogReader.open(partial) as reader:
            report = verify(reader, projections, keys=keys, progress=progress)
    except LogUnreadable as error:
        raise BackupFailed(f"the copy cannot be read: {error}") from error
    if not report.clean:
        raise BackupFailed(f"the copy is not clean: {report.first}")
    return report


def _give_name(partial: Path, target: Path) -> None:
    try:
        os.link(partial, target)  # Unlike a rename, this refuses a target that has come up meanwhile.
    except OSError:
        shutil.rmtree(archives_of(target), ignore_errors=True)
        raise
    sync(target.parent)


def _remove(partial: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        partial.with_name(partial.name + suffix).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(archives_of(partial))
