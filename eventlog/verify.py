"""Whether a log is what its records say, and if not, where it first is not.

Rule 1: everything is made again from the records' bytes: leaves, tree, head, columns, projections, states.
Nothing stored is believed because it is stored.
Rule 2: a fault names its position and what is wrong there. What follows from a fault named already is not
named again.
Rule 3: a file that agrees with itself may still be a forgery. So the report says how many records lie after
the last checkpoint that a believed key signed, and whoever kept a checkpoint elsewhere brings it.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from eventlog import merkle
from eventlog.checkpoint import Checkpoint, parse_checkpoint, verify_checkpoint
from eventlog.faults import Fault, FaultKind
from eventlog.file_check import file_faults, layout_faults, stray_faults
from eventlog.note import VerifyingKey
from eventlog.projection import Projection
from eventlog.reading import (
    DAMAGE,
    RECORDS_PER_PROGRESS,
    Columns,
    Entry,
    Head,
    LogReader,
    LogUnreadable,
    Progress,
    ignore_progress,
)
from eventlog.record import (
    CLOCK_STEPPED,
    KEY_CHANGED,
    Record,
    RecordError,
    clock_went_back,
    decode,
)
from eventlog.refold import Difference, Refold, compare_projection
from eventlog.removal_check import RemovalCheck
from eventlog.shelf import Gap
from eventlog.snapshot import StateFold
from eventlog.tree_check import TreeCheck
from eventlog.trust import Trust

__all__ = ["Difference", "Fault", "FaultKind", "Report", "compare_projection", "verify"]

FAULT_LIMIT = 100
"""How many faults a report lists; the others are counted."""

_NO_END = 2**62
_TREE_FAULTS = frozenset({FaultKind.MISSING, FaultKind.LEAF, FaultKind.BYTES, FaultKind.TREE, FaultKind.FILE})


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found.

    `faults`: in the order of positions, those of no position last. `first_checked`: 0, or the size of the
    checkpoint that was to be believed. `unprotected`: the records after the last checkpoint of a believed
    key. `clock_steps`: the positions of records that say that the clock was set, no faults in themselves.
    `projections_unknown`: those in the file that nobody brought. `gone`: records that could not be looked at,
    of which only hashes are left; pruned ones are no fault. `unfolded`: what could not be made again from the
    records, because some are gone, and why.
    """

    size: int
    root: bytes
    first_checked: int
    records_checked: int
    faults: tuple[Fault, ...]
    faults_not_listed: int
    checkpoints_checked: int
    unprotected: int
    keys: tuple[VerifyingKey, ...]
    clock_steps: tuple[int, ...]
    projections_checked: tuple[str, ...]
    projections_unknown: tuple[str, ...]
    gone: tuple[Gap, ...]
    unfolded: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    @property
    def first(self) -> Fault | None:
        """The first fault."""
        return self.faults[0] if self.faults else None


def verify(
    reader: LogReader,
    projections: Iterable[Projection] = (),
    *,
    keys: Sequence[VerifyingKey] = (),
    against: Sequence[bytes] = (),
    since: bytes | None = None,
    folds: Iterable[StateFold] = (),
    progress: Progress = ignore_progress,
) -> Report:
    """Check a log against its records' bytes, as of one moment.

    `keys`: believed from the start; without any, the log's first key is believed on its own word. `against`:
    checkpoints kept elsewhere. `since`: a checkpoint to be believed, so that only later records are read;
    projections and states are then left out, as they need all. `folds`: to make kept states again. Raises
    NoteError for a `since` that is no checkpoint of a believed key.
    """
    believed = None
    if since is not None:
        believed = verify_checkpoint(since, keys)[0] if keys else parse_checkpoint(since)
        projections, folds = (), ()
    with reader.snapshot():
        return _Check(reader, Trust(keys, reader.checkpoints(), against), believed).run(
            projections, folds, progress
        )


class _Check:
    """One pass over the records, everything checked on the way."""

    def __init__(self, reader: LogReader, trust: Trust, since: Checkpoint | None) -> None:
        self._reader = reader
        self._trust = trust
        self._since = since
        self._first = 0 if since is None else since.size
        self._next_position = self._first
        self._faults: list[Fault] = []
        self._faults_not_listed = 0
        self._bad_in_tree: list[int] = []
        self._tree: TreeCheck | None = None
        self._start_contradicted = False
        self._roots: dict[int, bytes] = {}
        self._sizes = trust.sizes
        self._high_wall_ns: int | None = None
        self._clock_steps: list[int] = []
        self._brought: tuple[str, ...] = ()
        self._removals = RemovalCheck(reader, self._first)

    def run(
        self, projections: Iterable[Projection], folds: Iterable[StateFold], progress: Progress
    ) -> Report:
        head = Head(0, merkle.EMPTY_ROOT)
        with self._damage():
            head = self._reader.head()
        projections = tuple(projections)
        self._check_file(projections)
        if self._first > head.size:
            detail = f"the checkpoint to be believed is over {self._first} records: cut off, or put back"
            self._fault(head.size, FaultKind.CHECKPOINT, detail)
            return self._report(head, 0, (), ())
        self._brought = tuple(projection.name for projection in projections)
        refold = Refold(self._reader, projections, folds)
        try:
            self._sizes = self._trust.sizes | refold.snapshot_sizes
            self._start_tree()
            checked = self._check_records(refold, head.size, progress)
            with self._damage():
                self._take_in(self._removals.faults())
            with self._damage():
                self._check_head(head)
            if self._tree is not None and not self._bad_in_tree:
                with self._damage():
                    self._take_in(self._removals.root_faults())
            with self._damage():
                self._take_in(refold.projection_faults())
            with self._damage():
                sound = {at: root for at, root in self._roots.items() if not self._is_bad_within(0, at)}
                self._take_in(refold.snapshot_faults(self._next_position, sound))
        finally:
            refold.close()
        self._check_checkpoints()
        return self._report(head, checked, refold.projections, refold.unfolded)

    def _report(
        self, head: Head, checked: int, projections: tuple[str, ...], unfolded: tuple[str, ...]
    ) -> Report:
        stored: dict[str, int] = {}
        with self._damage():
            stored = self._reader.projection_versions()
        faults = sorted(self._faults, key=lambda fault: (fault.position is None, fault.position or 0))
        return Report(
            size=head.size,
            root=head.root,
            first_checked=self._first,
            records_checked=checked,
            faults=tuple(faults),
            faults_not_listed=self._faults_not_listed,
            checkpoints_checked=self._trust.checked,
            unprotected=max(0, head.size - max(self._trust.protected, self._first)),
            keys=self._trust.keys,
            clock_steps=tuple(self._clock_steps),
            projections_checked=projections,
            projections_unknown=tuple(sorted(stored.keys() - set(self._brought))),
            gone=self._removals.gone,
            unfolded=unfolded,
        )

    def _fault(self, position: int | None, kind: FaultKind, detail: str) -> None:
        self._take_in([Fault(position, kind, detail)])

    def _take_in(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            if fault.position is not None and fault.kind in _TREE_FAULTS:
                insort(self._bad_in_tree, fault.position)
            if len(self._faults) < FAULT_LIMIT:
                self._faults.append(fault)
            else:
                self._faults_not_listed += 1

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """What cannot be read is a fault, and the next step goes on."""
        try:
            yield
        except (*DAMAGE, LogUnreadable, IndexError) as error:
            self._fault(None, FaultKind.FILE, str(error))

    def _is_bad_within(self, first: int, end: int) -> bool:
        at = bisect_left(self._bad_in_tree, first)
        return at < len(self._bad_in_tree) and self._bad_in_tree[at] < end

    def _check_file(self, projections: Sequence[Projection]) -> None:
        connection = self._reader.connection_for_checks()
        if self._since is None:
            self._take_in(file_faults(connection))
        with self._damage():
            self._take_in(layout_faults(connection, projections))
        with self._damage():
            self._take_in(stray_faults(connection))

    def _start_tree(self) -> None:
        with self._damage():
            self._tree = TreeCheck(self._reader, self._first)
            self._keep_root()
            if self._since is None:
                return
            if self._tree.root() == self._since.root:
                self._keep_earlier_roots(self._since)
            else:
                detail = (
                    f"the {self._first} records up to here are not those of the checkpoint to be believed"
                )
                self._fault(self._first, FaultKind.CHECKPOINT, detail)
                self._tree = None
                self._start_contradicted = True

    def _keep_earlier_roots(self, since: Checkpoint) -> None:
        """The roots below a checkpoint that is believed: those that its root proves to be its own past's."""
        for size in self._sizes:
            if size < since.size:
                root = self._reader.root_at(size)
                path = merkle.consistency_proof(self._reader, size, since.size)
                with suppress(
                    merkle.ProofError
                ):  # The stored hashes contradict it: then the root is not kept.
                    merkle.verify_consistency(size, root, since.size, since.root, path)
                    self._roots[size] = root

    def _keep_root(self) -> None:
        if self._tree is not None and self._tree.size in self._sizes:
            self._roots[self._tree.size] = self._tree.root()

    def _check_records(self, refold: Refold, total: int, progress: Progress) -> int:
        checked = 0
        to_check = max(0, total - self._first)
        try:
            for piece in self._reader.read_with_columns(self._first, _NO_END):
                if isinstance(piece, Gap):
                    self._check_gap(piece, refold)
                    continue
                self._check_entry(*piece, refold)
                checked += 1
                if checked % RECORDS_PER_PROGRESS == 0:
                    progress(checked, to_check)
        except DAMAGE as error:
            self._fault(self._next_position, FaultKind.FILE, f"SQLite says: {error}")
        progress(checked, max(checked, to_check))
        return checked

    def _check_gap(self, gap: Gap, refold: Refold) -> None:
        """Positions whose records cannot be read: the tree is made of the hashes that stayed."""
        refold.handle_gap(gap.span.end, f"{gap.span}: {gap.why}")
        faults = list(self._removals.handle_gap(gap))
        self._take_in(faults)
        self._high_wall_ns = None
        self._next_position = gap.span.end
        if any(fault.kind is FaultKind.MISSING for fault in faults):
            self._tree = None  # It cannot be made again; bytes and columns after it still can be checked.
        try:
            while self._tree is not None and self._tree.size < gap.span.end:
                grown = self._tree.skip_group() if gap.leaf is None else self._tree.append(gap.leaf)
                self._take_in_tree(grown)
        except LookupError as error:
            self._fault(gap.span.first, FaultKind.TREE, str(error))
            self._tree = None

    def _check_entry(self, entry: Entry, columns: Columns | None, refold: Refold) -> None:
        self._next_position = entry.position + 1
        leaf = self._check_record(entry, columns, refold)
        if self._tree is not None:
            self._take_in_tree(self._tree.append(leaf))

    def _take_in_tree(self, wrong: Iterable[tuple[int, int, str]]) -> None:
        for first, end, detail in wrong:
            if not self._is_bad_within(first, end):
                self._fault(first, FaultKind.TREE, detail)
        self._keep_root()

    def _check_record(self, entry: Entry, columns: Columns | None, refold: Refold) -> bytes:
        """Everything about one record but its place in the tree; returns the leaf hash of what is there."""
        position = entry.position
        self._removals.handle_entry(entry)
        if entry.data is None:
            refold.handle_gap(position + 1, f"the record at position {position} is gone")
            return entry.leaf
        leaf = merkle.leaf_hash(entry.data)
        if leaf != entry.leaf:
            self._fault(position, FaultKind.LEAF, "its bytes are not those that were hashed")
        try:
            record = decode(entry.data)
        except RecordError as error:
            self._fault(position, FaultKind.BYTES, f"no record: {error}")
            return leaf
        if columns is not None:
            self._check_columns(position, record, columns)
        self._check_clock(position, record)
        self._take_in(self._removals.handle_record(position, record))
        if record.type == KEY_CHANGED and (fault := self._trust.handle_key_change(position, record.fields)):
            self._take_in([fault])
        self._take_in(refold.apply(position, record))
        return leaf

    def _check_columns(self, position: int, record: Record, columns: Columns) -> None:
        source = record.source
        wanted = Columns(
            record.type, record.wall_ns, source.name, source.incarnation, source.sequence, source.part
        )
        for name in Columns.__dataclass_fields__:
            stands, said = getattr(columns, name), getattr(wanted, name)
            if stands != said:
                detail = f"beside the bytes stands {name} {stands!r}, they say {said!r}"
                self._fault(position, FaultKind.COLUMNS, detail)

    def _check_clock(self, position: int, record: Record) -> None:
        high = self._high_wall_ns
        if record.type == CLOCK_STEPPED:
            self._clock_steps.append(position)
        if record.type == CLOCK_STEPPED or high is None:
            self._high_wall_ns = record.wall_ns
            return
        if clock_went_back(high, record.wall_ns):
            detail = f"the clock goes back by {high - record.wall_ns} ns, and no record says that it was set"
            self._fault(position, FaultKind.CLOCK, detail)
        self._high_wall_ns = max(high, record.wall_ns)

    def _check_head(self, head: Head) -> None:
        if head.size != self._next_position:
            self._fault(None, FaultKind.HEAD, f"it says {head.size} records, there are {self._next_position}")
        if self._tree is not None:
            for detail in self._tree.surplus():
                self._fault(None, FaultKind.TREE, detail)
            if self._tree.root() != head.root and not self._bad_in_tree:
                self._fault(None, FaultKind.HEAD, "its root is not the root over the records")
        nothing_else = self._since is None and not self._faults and not self._removals.gone
        if nothing_else and self._reader.last_wall_ns != self._high_wall_ns:
            self._fault(None, FaultKind.HEAD, "its highest wall time is not the records'")

    def _check_checkpoints(self) -> None:
        if self._start_contradicted:
            return  # The tree could not be made, so no root can be held against any other checkpoint.
        found = list(self._trust.faults(self._roots, self._next_position))
        for fault, end in found:
            # A record that is known to be changed is reason enough for the roots after it.
            if fault.position is None or not self._is_bad_within(fault.position, end):
                self._take_in([fault])
