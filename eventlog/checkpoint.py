"""Checkpoints: the log's size and root, signed (C2SP tlog-checkpoint), and when to make one.

Rule 1: only what is committed is signed: a checkpoint over records that a crash takes back would be a lie
for ever.
Rule 2: nothing is signed that contradicts the checkpoint before it; a log that does not continue its own
past is damaged or has been exchanged, and raises.
Rule 3: what lies after the last checkpoint is unprotected. Whoever keeps a checkpoint elsewhere can prove
truncation, rewriting, forks and rollback with the public key alone.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eventlog.disk import write_whole
from eventlog.merkle import HASH_SIZE
from eventlog.note import NoteError, SigningKey, VerifyingKey, note_text, verify_note
from eventlog.reading import LogReader
from eventlog.record import Value
from eventlog.store import Log

LATEST = "latest.checkpoint"
"""The name, in a directory of checkpoints, of the newest one."""

_KEY_CHANGE = "eventlog key change"


class CheckpointContradicted(Exception):
    """The log is not the one that the last checkpoint was signed for."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says: the log's name, its size, and the root of the tree over so many records."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The text to be signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """A checkpoint at least every so many records and, if there are new ones, every so many seconds."""

    every_records: int = 1000
    every_s: float = 60.0


def checkpoint_due(
    policy: CheckpointPolicy, last_size: int, last_monotonic_ns: int, size: int, monotonic_ns: int
) -> bool:
    """Whether a log of `size` records, last checkpointed at `last_size`, wants another checkpoint now."""
    if size == last_size:
        return False
    waited_s = (monotonic_ns - last_monotonic_ns) / 1e9
    return size - last_size >= policy.every_records or waited_s >= policy.every_s


def parse_checkpoint(note: bytes) -> Checkpoint:
    """What a checkpoint's note says, not yet believed. Raises NoteError."""
    return _parse_text(note_text(note))


def verify_checkpoint(note: bytes, keys: Iterable[VerifyingKey]) -> tuple[Checkpoint, VerifyingKey]:
    """The checkpoint and its signer. Raises NoteError unless one of these keys signed its own log's."""
    text, key = verify_note(note, keys)
    checkpoint = _parse_text(text)
    if checkpoint.origin != key.name:
        raise NoteError(f"the checkpoint of {checkpoint.origin} is signed by {key.name}")
    return checkpoint, key


def make_checkpoint(log: Log, key: SigningKey, made_ns: int) -> bytes:
    """Sign the log's head and keep the note in the log's file; returns the note.

    `made_ns`: wall time, for people. Raises CheckpointContradicted, and what Log.write_checkpoint raises.
    """
    head = log.head()
    last = log.latest_checkpoint()
    if last is not None:
        check_continued(log, last.note, "its last checkpoint")
    note = key.sign(Checkpoint(key.name, head.size, head.root).text())
    log.write_checkpoint(note, head.size, made_ns)
    return note


def check_continued(reader: LogReader, note: bytes, said: str) -> None:
    """Raise CheckpointContradicted unless the log begins with the records that this checkpoint is over.

    `said`: what the checkpoint is, for the message. Its signature is not looked at.
    """
    try:
        before = parse_checkpoint(note)
    except NoteError as error:
        raise CheckpointContradicted(f"{reader.path}: {said} is none: {error}") from error
    if before.size > reader.size:
        detail = f"it has {reader.size} records, {said} is over {before.size}: it was cut off, or put back"
    elif reader.root_at(before.size) != before.root:
        detail = f"its first {before.size} records are not those of {said}; `verify` says where"
    else:
        return
    raise CheckpointContradicted(f"{reader.path}: {detail}")


def write_to_directory(directory: Path, note: bytes) -> Path:
    """Put a checkpoint there, by its size and as the latest: whole or not at all. Raises OSError."""
    path = directory / f"{parse_checkpoint(note).size:020}.checkpoint"
    for target in (path, directory / LATEST):
        write_whole(target, note)
    return path


def key_change_fields(new: VerifyingKey, old: SigningKey | None) -> tuple[Value, ...]:
    """The fields of a KEY_CHANGED record: the new key, and the old one's word for it.

    `old` is None for a log's first key, and when the old key is lost: then an auditor must be told of the
    new one.
    """
    return (str(new), None if old is None else old.sign(f"{_KEY_CHANGE}\n{new}\n".encode()))


def key_change(fields: tuple[Value, ...], keys: Iterable[VerifyingKey]) -> tuple[VerifyingKey, bool]:
    """What a KEY_CHANGED record says: the new key, and whether one of `keys` vouches for it.

    Raises ValueError for a record that says no such thing.
    """
    match fields:
        case (str(text), None):
            return VerifyingKey.parse(text), False
        case (str(text), bytes(endorsement)):
            new = VerifyingKey.parse(text)
            try:
                said, _ = verify_note(endorsement, keys)
            except NoteError:
                return new, False
            return new, said == f"{_KEY_CHANGE}\n{new}\n".encode()
        case _:
            raise ValueError("a key and its endorsement are wanted")


def _parse_text(text: bytes) -> Checkpoint:
    lines = text.decode().split("\n")[:-1]
    if len(lines) < 3 or not all(lines):
        raise NoteError("no checkpoint: origin, size and root are wanted")
    origin, size, root = lines[:3]
    if not (size.isascii() and size.isdecimal()) or str(int(size[:20])) != size:
        raise NoteError(f"no checkpoint: {size[:30]!r} is no size")
    try:
        root_bytes = base64.b64decode(root, validate=True)
    except ValueError as error:
        raise NoteError("no checkpoint: its root is not base64") from error
    if len(root_bytes) != HASH_SIZE:
        raise NoteError(f"no checkpoint: its root has {len(root_bytes)} bytes")
    return Checkpoint(origin, int(size), root_bytes)
