"""The last checkpoint, kept by a worker on its own disk: what the tracker's owner cannot take back.

Rule 1: it is replaced only by one that is shown to continue it. Rule 2: one that does not (a log cut off, put
back, forked) is evidence: it is kept beside, the first of them, and said loudly; the worker works on, because
calls are none of this quarrel. Rule 3: on the disk is the old or the new one, whole.

Without public keys a signature is not checked here: whoever audits has the key, and both notes.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from eventlog.checkpoint import Checkpoint, parse_checkpoint, verify_checkpoint
from eventlog.disk import write_whole
from eventlog.merkle import ProofError, verify_consistency
from eventlog.note import NoteError, VerifyingKey
from tracker.messages import CheckpointMade, GetCheckpoint

LOGGER: Final = logging.getLogger(__name__)
EVIDENCE: Final = ".evidence"
"""Ends the name of the first checkpoint that contradicts the kept one."""
DAMAGED: Final = ".damaged"
"""Ends the name of a kept checkpoint that was none when it was read again."""


class Keeper:
    """The file at `path`, and what it says."""

    def __init__(self, path: Path, keys: Iterable[VerifyingKey] = ()) -> None:
        self._path = path
        self._keys = tuple(keys)
        self.kept = self._read()

    def receive(self, made: CheckpointMade) -> GetCheckpoint | None:
        """Keep it if it continues the kept one; returns what to ask where nothing shows that it does."""
        try:
            checkpoint = self._believed(made.note)
        except NoteError as error:
            self._refuse(made.note, f"it is not to be believed: {error}")
            return None
        kept = self.kept
        if kept is None or kept.size == 0:
            self._keep(made.note, checkpoint)
        elif checkpoint.origin != kept.origin:
            self._refuse(made.note, f"it is of the log {checkpoint.origin}, ours is of {kept.origin}")
        elif checkpoint.size < kept.size:
            self._refuse(made.note, f"it is over {checkpoint.size} records, ours over {kept.size}")
        elif checkpoint.size == kept.size:
            if checkpoint.root != kept.root:
                self._refuse(made.note, f"it is over {kept.size} records like ours, but over others")
        elif made.since != kept.size:
            return GetCheckpoint(kept.size)
        else:
            self._keep_continued(made, checkpoint, kept)
        return None

    def _keep_continued(self, made: CheckpointMade, checkpoint: Checkpoint, kept: Checkpoint) -> None:
        try:
            verify_consistency(kept.size, kept.root, checkpoint.size, checkpoint.root, made.proof)
        except ProofError as error:
            reason = f"its {checkpoint.size} records do not begin with the {kept.size} of ours: {error}"
            self._refuse(made.note, reason)
        else:
            self._keep(made.note, checkpoint)

    def _believed(self, note: bytes) -> Checkpoint:
        return verify_checkpoint(note, self._keys)[0] if self._keys else parse_checkpoint(note)

    def _keep(self, note: bytes, checkpoint: Checkpoint) -> None:
        try:
            write_whole(self._path, note)
        except OSError as error:
            # The old one stays ours: the next checkpoint has to continue that, and is written instead.
            LOGGER.warning("a checkpoint could not be kept in %s: %s", self._path, error)
        else:
            self.kept = checkpoint

    def _refuse(self, note: bytes, reason: str) -> None:
        evidence = self._path.with_name(self._path.name + EVIDENCE)
        LOGGER.error("the tracker's log does not continue the checkpoint in %s: %s", self._path, reason)
        LOGGER.error("this is evidence against that log: keep %s and %s", self._path, evidence)
        if not evidence.exists():
            try:
                write_whole(evidence, note)
            except OSError as error:
                LOGGER.error("and it could not be written: %s; here it is: %r", error, note)

    def _read(self) -> Checkpoint | None:
        try:
            return parse_checkpoint(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except NoteError as error:
            aside = self._path.with_name(self._path.name + DAMAGED)
            self._path.replace(aside)
            LOGGER.error("%s is no checkpoint (%s); it is now %s", self._path, error, aside)
            return None
