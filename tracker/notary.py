"""Who signs the log's checkpoints, and where they go: into the log's file and into a directory.

Rule 1: only what is committed is signed. Rule 2: nothing is signed that contradicts an earlier checkpoint, in
the file or in the directory: such a log was cut off, put back or exchanged, and the tracker does not go on
with it. Rule 3: a directory that cannot be written delays its copy, never the log: it is tried again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from eventlog import merkle
from eventlog.checkpoint import (
    LATEST,
    CheckpointContradicted,
    CheckpointPolicy,
    check_continued,
    checkpoint_due,
    key_change_fields,
    make_checkpoint,
    write_to_directory,
)
from eventlog.note import KeyUnusable, SigningKey, VerifyingKey, read_key_file
from eventlog.store import Log
from tracker.configuration import TrackerSection
from tracker.instant import Instant
from tracker.machine import Signed

LOGGER: Final = logging.getLogger(__name__)
_RETRY_NS: Final = 10_000_000_000


@dataclass(slots=True)
class _Copy:
    """A note that the directory has not got yet, and when to try (monotonic)."""

    note: bytes
    due_ns: int


class Notary:
    """Holds the signing key of one log."""

    def __init__(
        self, log: Log, key: SigningKey, policy: CheckpointPolicy, directory: Path | None, now: Instant
    ) -> None:
        self._log = log
        self._key = key
        self._policy = policy
        self._directory = directory
        self._looked_ns = now.monotonic_ns
        self._copy: _Copy | None = None
        stored = log.latest_checkpoint()
        self.last = None if stored is None else Signed(stored.note, stored.size, stored.made_ns)

    @classmethod
    def open(cls, section: TrackerSection, log: Log, now: Instant) -> Self | None:
        """None without a key. KeyUnusable; CheckpointContradicted: this log is not its own past."""
        stored = log.latest_checkpoint()
        if stored is not None:
            check_continued(log, stored.note, "its last checkpoint")
        if section.signing_key is None:
            return None
        if section.checkpoint_directory is not None:
            _check_directory(log, section.checkpoint_directory)
        policy = CheckpointPolicy(section.checkpoint_every_records, section.checkpoint_every_s)
        key = read_key_file(section.signing_key)
        return cls(log, key, policy, section.checkpoint_directory, now)

    def follow(self, section: TrackerSection) -> None:
        """Go on by another configuration, with the same key."""
        self._policy = CheckpointPolicy(section.checkpoint_every_records, section.checkpoint_every_s)
        self._directory = section.checkpoint_directory

    @property
    def key(self) -> str:
        """The public half."""
        return str(self._key.verifying_key)

    def endorsement(self, key_of_log: str | None, previous: Path | None) -> bytes | None:
        """What the key that has signed this log so far says of ours, if we have it and it is another one.

        KeyUnusable: ours is for another log, or the previous one cannot be read.
        """
        if key_of_log is None or key_of_log == self.key:
            return None
        old = VerifyingKey.parse(key_of_log)
        if old.name != self._key.name:
            raise KeyUnusable(f"this log is called {old.name}, and the signing key is {self._key.name}'s")
        if previous is None or (old_key := read_key_file(previous)).verifying_key != old:
            LOGGER.warning(
                "another key than before signs from here on, and the old one does not vouch for it"
            )
            LOGGER.warning("auditors have to be told of it: %s", self.key)
            return None
        endorsement = key_change_fields(self._key.verifying_key, old_key)[1]
        return endorsement if isinstance(endorsement, bytes) else None

    def due(self, now: Instant) -> bool:
        """Whether there has been enough, in records or in time."""
        last_size = 0 if self.last is None else self.last.size
        return checkpoint_due(
            self._policy, last_size, self._looked_ns, self._log.head().size, now.monotonic_ns
        )

    def sign(self, now: Instant) -> Signed:
        """The checkpoint over all that is committed: the last one, if nothing is new.

        LogBusy: call again; AppendFailed, CheckpointContradicted: the process ends.
        """
        size = self._log.head().size
        if self.last is None or self.last.size != size:
            note = make_checkpoint(self._log, self._key, now.wall_ns)
            self.last = Signed(note, size, now.wall_ns)
            self._looked_ns = now.monotonic_ns
            if self._directory is not None:
                self._copy = _Copy(note, now.monotonic_ns)
        return self.last

    def write_copy(self, now: Instant) -> None:
        """Give the directory what it has not got yet."""
        copy, directory = self._copy, self._directory
        if copy is None or directory is None or now.monotonic_ns < copy.due_ns:
            return
        try:
            write_to_directory(directory, copy.note)
        except OSError as error:
            LOGGER.warning("%s has no copy of the last checkpoint: %s; it is tried again", directory, error)
            copy.due_ns = now.monotonic_ns + _RETRY_NS
        else:
            self._copy = None

    def consistency(self, old_size: int, size: int) -> Sequence[bytes]:
        """The proof that the log's first `size` records begin with its first `old_size`."""
        return merkle.consistency_proof(self._log, old_size, size)


def _check_directory(log: Log, directory: Path) -> None:
    """A log put back from an older copy looks sound in itself: the checkpoints kept beside it know more."""
    latest = directory / LATEST
    try:
        note = latest.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointContradicted(f"{latest} cannot be read: {error.strerror}") from error
    try:
        check_continued(log, note, str(latest))
    except CheckpointContradicted as error:
        mend = f"to go on with this log all the same, move {directory} aside; it is the evidence"
        raise CheckpointContradicted(f"{error}; {mend}") from error
