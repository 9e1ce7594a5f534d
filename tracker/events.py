"""What the log says: the events, their numbers, and their way into records and back.

Rule 1: a number, once in a log, keeps its meaning for ever; a changed event gets a new schema version and an
upcast here. Numbers below 16 are the eventlog's own; those that the tracker writes in its name are here too,
their fields as the eventlog makes them. Rule 2: an event holds what happened, never what follows
from it: `transitions.apply` and the projections derive the rest. Rule 3: a worker's report is recorded in the
words in which it was said, so reports are events of this file and `messages` sends them as they are.

Longer than other modules because the log's vocabulary is one list.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Final

from eventlog.record import (
    CLOCK_STEPPED,
    KEY_CHANGED,
    REDACTED,
    SEGMENT_ARCHIVED,
    SEGMENT_CLOSED,
    SEGMENT_PRUNED,
    SNAPSHOT_TAKEN,
    Record,
    Source,
    Value,
)
from tracker.shapes import (
    Address,
    Count,
    Hash,
    Limits,
    Mac,
    Milliseconds,
    Name,
    Nanoseconds,
    Port,
    Protocol,
    ProtocolError,
    Text,
    pack,
    unpack,
)

SCHEMA: Final = 4
"""Since 2 a report's own time stands in its record once: not among the fields, but as `reported_ns`.
Since 3 a session says whether its gateway is fenced.
Since 4 a service says who its fixed holder is, and the end of a binding how many callers it had."""
TRACKER: Final = "tracker"
"""Source name of what the tracker itself says; no worker may bear it."""


class Policy(enum.StrEnum):
    """Who gets a resource that several hosts want."""

    FIRST = "first"
    """Whoever sends first; the others when that one's time is over."""
    FIXED = "fixed"
    """The host that the configuration names, always."""
    LAST = "last"
    """Whoever opened a connection last."""


class Sharing(enum.StrEnum):
    """Whether a service of one public address is one resource, or one for each remote peer."""

    EXCLUSIVE = "exclusive"
    PER_PEER = "per-peer"


class Ending(enum.StrEnum):
    """Why a binding came to its end."""

    IDLE = "idle"
    HANG_UP = "hang-up"
    RELEASE = "release"
    REVOKE = "revoke"
    TAKE_OVER = "take-over"
    ADDRESS_CHANGED = "address-changed"
    LATE = "late"
    """The grant came after the worker had given the claim up."""
    LOST = "lost"
    """The kernel no longer held it when a worker came to look."""
    RECONFIGURED = "reconfigured"
    """The service is defined otherwise now: held by another host, or shared in another way."""


class Restraint(enum.StrEnum):
    """Why nobody, or not this host, may claim: an operator's word."""

    REVOKED = "revoked"
    """A binding of the host was revoked."""
    RESERVED = "reserved"
    """The service is reserved for another host."""
    FROZEN = "frozen"
    """Nobody may claim."""


class SessionEnding(enum.StrEnum):
    REOPENED = "reopened"
    """The same worker began anew."""
    TAKE_OVER = "take-over"
    LEASE_ENDED = "lease-ended"
    """Another worker came after the lease had run out."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports first..last, both included, of one IP protocol."""

    protocol: Protocol
    first: Port
    last: Port

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError(f"ports {self.first}-{self.last} run backwards")

    def __contains__(self, item: object) -> bool:
        """Whether (protocol, port) is one of them."""
        match item:
            case (int(protocol), int(port)):
                return protocol == self.protocol and self.first <= port <= self.last
            case _:
                return False


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """What is forwarded together, as the worker's configuration says; `holder`: only of a fixed service."""

    name: Name
    control: tuple[PortRange, ...]
    forward: tuple[PortRange, ...]
    policy: Policy
    sharing: Sharing
    idle_ms: Milliseconds
    holder: Address | None


@dataclass(frozen=True, slots=True)
class Resource:
    """What at most one binding holds at a time; `peer` only in per-peer sharing."""

    gateway: Name
    public_address: Address
    service: Name
    peer: Address | None


@dataclass(frozen=True, slots=True)
class TrackerStarted:
    """`run` counts the starts on this log; `previous_alive_ns`: when the last run was last known to live."""

    run: Count
    version: Text
    boot: Text
    previous_alive_ns: Nanoseconds | None


@dataclass(frozen=True, slots=True)
class TrackerStopped:
    """A clean end: everything received was answered."""

    run: Count


@dataclass(frozen=True, slots=True)
class ClockStepped:
    """The tracker's wall clock jumped: it showed `to_ns` where `from_ns` was due."""

    from_ns: Nanoseconds
    to_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class KeyChanged:
    """From here on `key`'s private half signs the checkpoints; `endorsement`: the old key's word for it."""

    key: Text
    endorsement: Annotated[bytes, Limits(0, 4096)] | None


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """A snapshot of the state after the first `size` records was kept; `root`: of the tree over these."""

    name: Name
    version: Count
    size: Count
    root: Hash
    state_hash: Hash


@dataclass(frozen=True, slots=True)
class RecordRedacted:
    """The bytes of the record at `position` were taken out; what it had led to stays."""

    position: Count
    reason: Text


@dataclass(frozen=True, slots=True)
class SegmentClosed:
    """The records from `first` up to `end` are a segment; `root`: of the tree over everything up to there."""

    first: Count
    end: Count
    root: Hash
    first_wall_ns: Nanoseconds
    last_wall_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class SegmentArchived:
    """The records of a segment are in a file of their own; `archive`: its header's hash."""

    first: Count
    end: Count
    archive: Hash


@dataclass(frozen=True, slots=True)
class SegmentPruned:
    """The records of a segment were given up; what they had led to stays."""

    first: Count
    end: Count
    reason: Text


@dataclass(frozen=True, slots=True)
class RecordsMissed:
    """Messages of a worker that no log holds; `last_sequence` None: nobody knows how many.

    `since_ns`: a time from which on everything of that worker may be missing (None: since ever).
    """

    worker: Name
    incarnation: Count
    first_sequence: Count
    last_sequence: Count | None
    since_ns: Nanoseconds | None


@dataclass(frozen=True, slots=True)
class ServiceDefined:
    gateway: Name
    service: ServiceDefinition


@dataclass(frozen=True, slots=True)
class ServiceRemoved:
    gateway: Name
    name: Name


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A worker speaks for a gateway from here on; `epoch` is its fencing token.

    `fence`: its kernel forwards nothing when the lease has ended (on_tracker_loss = "fence").
    """

    gateway: Name
    epoch: Count
    worker: Name
    host: Text
    public_addresses: tuple[Address, ...]
    lease_ms: Milliseconds
    fence: bool


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """`worker` wanted the gateway while the session `epoch` of another one ran; said once for each epoch."""

    gateway: Name
    epoch: Count
    worker: Name
    host: Text


@dataclass(frozen=True, slots=True)
class SessionEnded:
    gateway: Name
    epoch: Count
    worker: Name
    reason: SessionEnding


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The lease ran out; nothing was heard since `last_heard_ns` (the tracker's wall clock)."""

    gateway: Name
    epoch: Count
    worker: Name
    last_heard_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class WorkerReturned:
    gateway: Name
    epoch: Count
    worker: Name
    lost_since_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class PortBound:
    """From here on `holder` holds `resource`; the rest says by which packet it was claimed."""

    binding: Count
    resource: Resource
    holder: Address
    mac: Mac | None
    epoch: Count
    protocol: Protocol
    source_port: Port
    destination: Address
    destination_port: Port


@dataclass(frozen=True, slots=True)
class PortRefused:
    """`claimant` was refused what `binding` holds: the first time; what follows is only counted."""

    binding: Count
    claimant: Address
    mac: Mac | None
    protocol: Protocol
    source_port: Port
    destination: Address
    destination_port: Port


@dataclass(frozen=True, slots=True)
class RefusalsEnded:
    """How often `claimant` was refused while `binding` lasted; after a tracker restart a lower bound."""

    binding: Count
    claimant: Address
    count: Count
    last_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class PortUnbound:
    """The resource is free; always after the worker said that the kernel has nothing of it any more."""

    binding: Count
    reason: Ending


@dataclass(frozen=True, slots=True)
class WithdrawalOrdered:
    """An operator, `by`, ended a binding; its worker has to take it from the kernel."""

    binding: Count
    ending: Ending
    by: Text
    why: Text


@dataclass(frozen=True, slots=True)
class HostBarred:
    """`host` may not claim the service; `until_ns` None: until an operator says that it may."""

    gateway: Name
    service: Name
    host: Address
    until_ns: Nanoseconds | None
    by: Text
    why: Text


@dataclass(frozen=True, slots=True)
class BarLifted:
    """It may again; `by` None: its time was over."""

    gateway: Name
    service: Name
    host: Address
    by: Text | None
    why: Text


@dataclass(frozen=True, slots=True)
class PortReserved:
    """Only `host` may claim the service."""

    gateway: Name
    service: Name
    host: Address
    by: Text
    why: Text


@dataclass(frozen=True, slots=True)
class ReservationEnded:
    gateway: Name
    service: Name
    host: Address
    by: Text
    why: Text


@dataclass(frozen=True, slots=True)
class ClaimsFrozen:
    """Nobody may claim at the gateway; None: at any."""

    gateway: Name | None
    by: Text
    why: Text


@dataclass(frozen=True, slots=True)
class FreezeEnded:
    gateway: Name | None
    by: Text
    why: Text


@dataclass(frozen=True, slots=True)
class ClaimDenied:
    """`claimant` was refused a free resource by an operator's word: said once for each word and host."""

    gateway: Name
    service: Name
    claimant: Address
    because: Restraint
    mac: Mac | None
    protocol: Protocol
    source_port: Port
    destination: Address
    destination_port: Port


@dataclass(frozen=True, slots=True)
class BindingInstalled:
    """Report: the kernel forwards for this binding since `installed_ns`."""

    gateway: Name
    epoch: Count
    binding: Count
    installed_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class BindingWithdrawn:
    """Report: the kernel has nothing of this binding any more; counters are those of its last second.

    `callers`: connections that were opened to the holder from outside; the counters are None where the kernel
    counts several bindings together.
    """

    gateway: Name
    epoch: Count
    binding: Count
    reason: Ending
    withdrawn_ns: Nanoseconds
    last_packet_ns: Nanoseconds | None
    packets: Count | None
    octets: Count | None
    callers: Count | None


@dataclass(frozen=True, slots=True)
class HolderNamed:
    """Report: what the holder's packets call their user."""

    gateway: Name
    epoch: Count
    binding: Count
    user_name: Text


@dataclass(frozen=True, slots=True)
class KernelStateRestored:
    """Report: someone removed our kernel state (`what`); it was last seen at `lost_since_ns`."""

    gateway: Name
    epoch: Count
    what: Text
    lost_since_ns: Nanoseconds
    restored_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class PublicAddressChanged:
    """Report: the gateway's public address went (`old`), came (`new`), or both."""

    gateway: Name
    epoch: Count
    old: Address | None
    new: Address | None
    observed_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class QueueOverflowed:
    """Report: `dropped` packets did not get into our queue `queue`, mostly because it was full.

    Claims are lost then; OpenContinues go on unread, but for datapath "queue", where they are lost, too.
    """

    gateway: Name
    epoch: Count
    queue: Text
    dropped: Count
    observed_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class OutboxFilled:
    """Report: from `since_ns` to `until_ns` the outbox took no claims; `refused` were refused for that."""

    gateway: Name
    epoch: Count
    since_ns: Nanoseconds
    refused: Count
    until_ns: Nanoseconds


Report = (
    BindingInstalled
    | BindingWithdrawn
    | HolderNamed
    | KernelStateRestored
    | PublicAddressChanged
    | QueueOverflowed
    | OutboxFilled
)
Restricting = HostBarred | BarLifted | PortReserved | ReservationEnded | ClaimsFrozen | FreezeEnded
"""What begins or ends a restriction."""
Event = (
    TrackerStarted
    | TrackerStopped
    | ClockStepped
    | RecordRedacted
    | KeyChanged
    | SnapshotTaken
    | SegmentClosed
    | SegmentArchived
    | SegmentPruned
    | RecordsMissed
    | ServiceDefined
    | ServiceRemoved
    | SessionOpened
    | SessionRefused
    | SessionEnded
    | WorkerLost
    | WorkerReturned
    | PortBound
    | PortRefused
    | RefusalsEnded
    | PortUnbound
    | WithdrawalOrdered
    | Restricting
    | ClaimDenied
    | Report
)

TYPES: Final[dict[int, type[Event]]] = {
    CLOCK_STEPPED: ClockStepped,
    REDACTED: RecordRedacted,
    KEY_CHANGED: KeyChanged,
    SNAPSHOT_TAKEN: SnapshotTaken,
    SEGMENT_CLOSED: SegmentClosed,
    SEGMENT_ARCHIVED: SegmentArchived,
    SEGMENT_PRUNED: SegmentPruned,
    16: TrackerStarted,
    17: TrackerStopped,
    18: RecordsMissed,
    20: ServiceDefined,
    21: ServiceRemoved,
    24: SessionOpened,
    25: SessionRefused,
    26: SessionEnded,
    27: WorkerLost,
    28: WorkerReturned,
    32: PortBound,
    33: PortRefused,
    34: RefusalsEnded,
    35: PortUnbound,
    40: BindingInstalled,
    41: BindingWithdrawn,
    42: HolderNamed,
    43: KernelStateRestored,
    44: PublicAddressChanged,
    45: QueueOverflowed,
    46: OutboxFilled,
    64: WithdrawalOrdered,
    65: HostBarred,
    66: BarLifted,
    67: PortReserved,
    68: ReservationEnded,
    69: ClaimsFrozen,
    70: FreezeEnded,
    71: ClaimDenied,
}
NUMBERS: Final[dict[type[Event], int]] = {event: number for number, event in TYPES.items()}


def to_record(event: Event, *, wall_ns: int, source: Source, nonce: bytes) -> Record:
    """The record that says `event`: `wall_ns` by the tracker's clock, the worker's own time beside it."""
    values = _with_time(type(event), pack(event), None)
    return Record(SCHEMA, NUMBERS[type(event)], wall_ns, reported_ns(event), source, nonce, values)


def from_record(record: Record) -> Event:
    """The event a record says, of whatever schema; ProtocolError if this version does not know it."""
    current = upcast(record)
    if current.type not in TYPES:
        raise ProtocolError("type", f"{current.type} is no event of schema {SCHEMA}")
    kind, values = TYPES[current.type], current.fields
    if kind in _TIMES and values[_TIMES[kind] : _TIMES[kind] + 1] == (None,):
        values = _with_time(kind, values, current.reported_ns)
    elif kind in _TIMES:
        raise ProtocolError(kind.__name__, "its own time stands among its fields, too")
    return unpack(kind, values)


def upcast(record: Record) -> Record:
    """What the record would be had it been written today. ProtocolError for a schema not known here."""
    if not 1 <= record.schema <= SCHEMA:
        raise ProtocolError("schema", f"{record.schema} is not known here, only 1 to {SCHEMA}")
    while record.schema < SCHEMA:
        record = _UPCASTS[record.schema](record)
    return record


def _to_schema_2(record: Record) -> Record:
    kind = TYPES.get(record.type)
    if kind is None or kind not in _TIMES or len(record.fields) <= _TIMES[kind]:
        return replace(record, schema=2)
    if record.fields[_TIMES[kind]] != record.reported_ns:
        raise ProtocolError("reported_ns", "it is not the time that the report says")
    return replace(record, schema=2, fields=_with_time(kind, record.fields, None))


def _to_schema_3(record: Record) -> Record:
    fields = (*record.fields, False) if TYPES.get(record.type) is SessionOpened else record.fields
    return replace(record, schema=3, fields=fields)


def _to_schema_4(record: Record) -> Record:
    fields = record.fields
    match TYPES.get(record.type), fields:
        case [kind, (gateway, tuple(service))] if kind is ServiceDefined:
            fields = (gateway, (*service, None))
        case [kind, _] if kind is BindingWithdrawn:
            fields = (*fields, None)
    return replace(record, schema=4, fields=fields)


_UPCASTS: Final[dict[int, Callable[[Record], Record]]] = {
    1: _to_schema_2,
    2: _to_schema_3,
    3: _to_schema_4,
}
"""By schema: what makes a record of it one of the next. Each stays for ever, as the records do."""

_TIME_NAMES: Final[dict[type[Event], str]] = {
    BindingInstalled: "installed_ns",
    BindingWithdrawn: "withdrawn_ns",
    KernelStateRestored: "restored_ns",
    PublicAddressChanged: "observed_ns",
    QueueOverflowed: "observed_ns",
    OutboxFilled: "until_ns",
}
"""The field of a report that is its own time, and in its record is `reported_ns`."""
_TIMES: Final[dict[type[Event], int]] = {
    kind: [field.name for field in fields(kind)].index(name) for kind, name in _TIME_NAMES.items()
}


def _with_time(kind: type[Event], values: tuple[Value, ...], time: int | None) -> tuple[Value, ...]:
    index = _TIMES.get(kind)
    return values if index is None else (*values[:index], time, *values[index + 1 :])


def reported_ns(event: Event) -> int | None:
    """The worker's own wall time of what it reports; None where the tracker is the source."""
    name = _TIME_NAMES.get(type(event))
    return None if name is None else int(getattr(event, name))
