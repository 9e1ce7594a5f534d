"""An archive checked alone: with nothing but the file and a public key."""

from collections.abc import Sequence
from dataclasses import dataclass

from eventlog import merkle
from eventlog.archive import Archive, ArchiveDamaged, check_records
from eventlog.checkpoint import Checkpoint, verify_checkpoint
from eventlog.note import NoteError, VerifyingKey
from eventlog.segments import Span


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """What was shown. `checkpoint` and `signed_by` are None when no key was brought."""

    span: Span
    redacted: int
    root: bytes
    checkpoint: Checkpoint | None
    signed_by: VerifyingKey | None


def check_archive(archive: Archive, keys: Sequence[VerifyingKey] = ()) -> ArchiveReport:
    """Check every run, every record and the tree over them; with keys, that one of them signed for it.

    Raises ArchiveDamaged with the first bad position.
    """
    header = archive.header
    redacted = check_records(archive)
    if not keys:
        return ArchiveReport(header.span, redacted, header.root, None, None)
    if header.note is None:
        raise ArchiveDamaged(f"{archive.path}: it holds no checkpoint, so no key speaks for it")
    try:
        checkpoint, key = verify_checkpoint(header.note, keys)
        merkle.verify_consistency(header.span.end, header.root, checkpoint.size, checkpoint.root, header.path)
    except (NoteError, merkle.ProofError) as error:
        raise ArchiveDamaged(f"{archive.path}: its checkpoint: {error}") from error
    return ArchiveReport(header.span, redacted, header.root, checkpoint, key)
