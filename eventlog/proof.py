"""One small file that proves one record to be in the log (C2SP tlog-proof), checked offline with the public
key alone.

    c2sp.org/tlog-proof@v1
    extra base64(0x00 || the record's bytes), or base64(0x01 || leaf hash) of a redacted record
    index POSITION
    the path's hashes in base64, from the leaf's sibling to the root's child
    <empty line>
    the checkpoint

The extra line is not believed, as the format demands: the leaf is hashed from it, and only a leaf that leads
to the signed root passes.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eventlog import merkle
from eventlog.checkpoint import Checkpoint, parse_checkpoint, verify_checkpoint
from eventlog.note import NOTE_LIMIT, NoteError, VerifyingKey
from eventlog.reading import LogReader
from eventlog.record import RECORD_LIMIT, Record, RecordError, decode

_HEADER = "c2sp.org/tlog-proof@v1"
_WITH_BYTES = b"\x00"
_LEAF_ONLY = b"\x01"
_FILE_LIMIT = 2 * RECORD_LIMIT + NOTE_LIMIT
_PATH_LIMIT = 64


class ProofRefused(ValueError):
    """A proof that is malformed, or shows nothing."""


class NotCovered(ProofRefused):
    """The checkpoint is over fewer records."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof has shown: at this position of the log stands this record (None: redacted)."""

    position: int
    record: Record | None
    leaf: bytes
    checkpoint: Checkpoint
    signed_by: VerifyingKey


def make_proof(reader: LogReader, position: int, note: bytes) -> bytes:
    """The proof that the record at `position` is in the tree of this checkpoint.

    Raises NotCovered, and ProofRefused when the checkpoint is none or not this log's, and
    where the log has lost the hashes; RecordsGone where it has given up the record.
    """
    try:
        checkpoint = parse_checkpoint(note)
    except NoteError as error:
        raise ProofRefused(f"the checkpoint is none: {error}") from error
    if not 0 <= position < checkpoint.size:
        raise NotCovered(f"position {position} is not among the checkpoint's {checkpoint.size} records")
    with reader.snapshot():
        if checkpoint.size > reader.size:
            raise ProofRefused("the checkpoint is not of this log")
        try:
            root = reader.root_at(checkpoint.size)
            path = merkle.inclusion_proof(reader, position, checkpoint.size)
        except IndexError as error:
            raise ProofRefused(f"the log is damaged: {error}; `verify` says more") from error
        if root != checkpoint.root:
            raise ProofRefused("the checkpoint is not of this log")
        entry = reader.entry(position)
    extra = _LEAF_ONLY + entry.leaf if entry.data is None else _WITH_BYTES + entry.data
    lines = [_HEADER, f"extra {_base64(extra)}", f"index {position}", *map(_base64, path), "", ""]
    return "\n".join(lines).encode() + note


def verify_proof(proof: bytes, keys: Iterable[VerifyingKey]) -> Proven:
    """What a proof shows, believing these keys and nothing else. Raises ProofRefused."""
    position, extra, path, note = _parse(proof)
    try:
        checkpoint, key = verify_checkpoint(note, keys)
        leaf, record = _leaf(extra)
        merkle.verify_inclusion(leaf, position, checkpoint.size, checkpoint.root, path)
    except (NoteError, merkle.ProofError, RecordError) as error:
        raise ProofRefused(str(error)) from error
    return Proven(position, record, leaf, checkpoint, key)


def _leaf(extra: bytes) -> tuple[bytes, Record | None]:
    kind, data = extra[:1], extra[1:]
    if kind == _WITH_BYTES:
        return merkle.leaf_hash(data), decode(data)
    if kind == _LEAF_ONLY and len(data) == merkle.HASH_SIZE:
        return data, None
    raise ProofRefused("its extra line holds no record")


def _parse(proof: bytes) -> tuple[int, bytes, Sequence[bytes], bytes]:
    """Position, extra data, path and checkpoint."""
    if len(proof) > _FILE_LIMIT:
        raise ProofRefused(f"{len(proof)} bytes, limit {_FILE_LIMIT}")
    head, gap, note = proof.partition(b"\n\n")
    try:
        header, extra, index, *path = head.decode().split("\n")
        position = int(index.removeprefix("index "))
        extra_data = base64.b64decode(extra.removeprefix("extra "), validate=True)
        hashes = [base64.b64decode(line, validate=True) for line in path]
    except ValueError as error:
        raise ProofRefused(f"no proof: {error}") from error
    canonical = (_HEADER, f"extra {_base64(extra_data)}", f"index {position}")
    if not gap or (header, extra, index) != canonical or len(path) > _PATH_LIMIT:
        raise ProofRefused("no proof: its lines are not as the format says")
    if any(len(node) != merkle.HASH_SIZE for node in hashes):
        raise ProofRefused("no proof: its path has something that is no hash")
    return position, extra_data, hashes, note


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
