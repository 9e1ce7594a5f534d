"""Snapshots: a state folded from the records, kept so that a restart need not fold them all again.

Rule: a snapshot is believed because a record says its hash and the root of the tree over the records that it
is made of, and that record is in the tree. Whoever changes the state without the record, or brings one from
another log, is found at the next start; whoever changes both has to rewrite the log, which checkpoints show.

What a state is, only its owner knows: bytes to us. `verify` folds it again where its owner lends the fold.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from eventlog.record import SNAPSHOT_TAKEN, Record, Value


class SnapshotDamaged(Exception):
    """A kept snapshot is not the one that the log's record speaks of."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state after the first `size` records. `said_at`: the position of the record that says its hash."""

    name: str
    version: int
    size: int
    state: bytes
    said_at: int = -1


class StateFold(Protocol):
    """How a state comes from records; lent to `verify`, fresh."""

    @property
    def name(self) -> str:
        """Of the snapshots."""

    @property
    def version(self) -> int:
        """Of the state's bytes; snapshots of another version are of no use."""

    def apply(self, position: int, record: Record) -> None:
        """Take in the next record."""

    def state(self) -> bytes:
        """The state after the records so far: the same bytes for the same records, always."""


def snapshot_fields(snapshot: Snapshot, root: bytes) -> tuple[Value, ...]:
    """The fields of the SNAPSHOT_TAKEN record that goes with a snapshot; `root`: of its `size` records."""
    return snapshot.name, snapshot.version, snapshot.size, root, sha256(snapshot.state).digest()


def check_snapshot(snapshot: Snapshot, record: Record | None, root: bytes | None) -> None:
    """Raise SnapshotDamaged unless the record says this snapshot's hash, over records with this root.

    `root` is None where nobody can make it again any more: then the record is taken at its word for it.
    """
    said = () if record is None or record.type != SNAPSHOT_TAKEN else record.fields
    match said:
        case (_, _, _, bytes(root_said), _) if root is None:
            root = root_said
        case _:
            pass
    if said != snapshot_fields(snapshot, root or b""):
        detail = f"the record at position {snapshot.said_at} says another state, or none"
        raise SnapshotDamaged(f"snapshot {snapshot.name} over {snapshot.size} records: {detail}")
    if not snapshot.size <= snapshot.said_at:
        raise SnapshotDamaged(f"snapshot {snapshot.name}: its record stands before what it is made of")
