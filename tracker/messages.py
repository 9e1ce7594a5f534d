"""What worker and tracker say to each other: one canonical msgpack array each, version first.

Rule 1: a frame has one encoding; maps, floats, extensions, surplus or missing values, values out of range are
one ProtocolError that names the field. Rule 2: what encodes here decodes here: `encode_*` refuses what
`decode_*` would. Rule 3: numbers of kinds are never used again, so a shape that
changes gets a new one. Rule 4: no I/O, no clock. Longer than other modules because it is one vocabulary.

    worker → tracker   [version, kind, worker, incarnation, sequence, acknowledged, age_ms, sent_ns, [body…]]
    tracker → worker   [version, kind, incarnation, sequence, [body…]]
"""

import enum
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgpack

from tracker.events import (
    TRACKER,
    BindingInstalled,
    BindingWithdrawn,
    Ending,
    HolderNamed,
    KernelStateRestored,
    OutboxFilled,
    PublicAddressChanged,
    QueueOverflowed,
    Report,
    Resource,
    Restraint,
    ServiceDefinition,
    SessionEnding,
)
from tracker.feed import FeedGap, FeedRecords, FeedRefused, GetState, ReadFeed, StatePart
from tracker.orders import (
    EndFreeze,
    EndReservation,
    FreezeClaims,
    LiftBar,
    Order,
    OrderRefused,
    OrderReply,
    OrderTaken,
    ReleaseBinding,
    ReservePort,
    RevokeBinding,
    Withdrawing,
    Withdrawn,
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
    shown,
    unpack,
)

VERSION: Final = 1
REQUEST_LIMIT: Final = 64 * 1024
"""The longest frame a worker may send, in bytes."""
REPLY_LIMIT: Final = 8 * 1024 * 1024
"""The longest frame the tracker sends: a SessionGranted with BINDINGS_LIMIT bindings of the longest names."""
BINDINGS_LIMIT: Final = 4096
"""How many bindings a gateway may have, and a Status shows."""
NOTE_LIMIT: Final = 64 * 1024
"""The longest signed note, in bytes; as eventlog.note has it."""
AGE_UNKNOWN_MS: Final = 2**32 - 1
"""The message is from before a clock step or a reboot: older than anything."""

Note = Annotated[bytes, Limits(0, NOTE_LIMIT)]


class ClaimRefusal(enum.StrEnum):
    """Why a claim was not granted."""

    HELD = "held"
    """Another host has it: `holder` and `binding` say which."""
    STALE = "stale"
    """It was older than its claim_timeout when it came; whoever asked has given up."""
    STALE_EPOCH = "stale-epoch"
    """The session it speaks for is over, or never was."""
    UNKNOWN_ADDRESS = "unknown-address"
    UNKNOWN_SERVICE = "unknown-service"
    WRONG_SHARING = "wrong-sharing"
    """With a peer in an exclusive service, or without one in a per-peer service."""
    FIXED = "fixed"
    """It is another host's by configuration."""
    FULL = "full"
    """The gateway has BINDINGS_LIMIT bindings."""
    ENDING = "ending"
    """The host has it, an operator has ended that, and the kernel has not yet let go."""
    REVOKED = "revoked"
    """An operator has revoked a binding of this host, and it may not claim again (yet)."""
    RESERVED = "reserved"
    """An operator has reserved it for another host."""
    FROZEN = "frozen"
    """An operator lets nobody claim."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """`worker` wants to speak for `gateway`; `host` says whose kernel it has: machine/boot/network namespace.

    `fence`: that kernel forwards nothing when the lease has ended.
    """

    gateway: Name
    public_addresses: tuple[Address, ...]
    services: tuple[ServiceDefinition, ...]
    host: Text
    take_over: bool
    fence: bool


@dataclass(frozen=True, slots=True)
class CloseSession:
    """The worker stops; another one may come at once. Bindings stay."""

    gateway: Name
    epoch: Count


@dataclass(frozen=True, slots=True)
class ClaimPort:
    """`holder` sent a packet (protocol … destination_port) that wants `service`; `peer` only if per-peer."""

    gateway: Name
    epoch: Count
    public_address: Address
    service: Name
    peer: Address | None
    holder: Address
    mac: Mac | None
    protocol: Protocol
    source_port: Port
    destination: Address
    destination_port: Port
    claim_timeout_ms: Milliseconds
    observed_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Keeps the session's lease; `nonce` comes back and tells which heartbeat was answered."""

    gateway: Name
    epoch: Count
    nonce: Count


@dataclass(frozen=True, slots=True)
class GetStatus:
    """Whoever may read asks how it stands."""


@dataclass(frozen=True, slots=True)
class GetCheckpoint:
    """Whoever keeps a checkpoint over `size` records (0: none) wants the latest, with the proof from his."""

    size: Count


@dataclass(frozen=True, slots=True)
class MakeCheckpoint:
    """Order: sign what is in the log by now."""


@dataclass(frozen=True, slots=True)
class FindPort:
    """An operator looks for what to order about: bindings, and the services a port belongs to.

    None asks for any; a binding fits whose service has the port, by either protocol if none is said.
    """

    binding: Count | None
    protocol: Protocol | None
    port: Port | None
    service: Name | None
    holder: Address | None
    gateway: Name | None

    def fits(self, service: ServiceDefinition) -> bool:
        """Whether it is the service, or one that has the port."""
        has_port = self.port is None or any(
            ports.first <= self.port <= ports.last and self.protocol in (None, ports.protocol)
            for ports in (*service.control, *service.forward)
        )
        return has_port and self.service in (None, service.name)


@dataclass(frozen=True, slots=True)
class BindingView:
    """A binding as it stands; `since_ns` by the tracker's clock, `epoch` that of its grant."""

    binding: Count
    resource: Resource
    holder: Address
    mac: Mac | None
    epoch: Count
    since_ns: Nanoseconds
    user_name: Text | None


@dataclass(frozen=True, slots=True)
class SessionGranted:
    """The session is the worker's; `bindings` are the gateway's, to be adopted or reported withdrawn.

    `granted_ns`: the tracker's wall clock, as in the bindings' `since_ns`. `trusted_epoch`: the first since
    another worker had the gateway. `moved_epoch`: with this one it came to this host from another (0: it did
    not); a kernel whose table is older never had what was the other's.
    """

    gateway: Name
    epoch: Count
    lease_ms: Milliseconds
    granted_ns: Nanoseconds
    trusted_epoch: Count
    moved_epoch: Count
    bindings: tuple[BindingView, ...]


@dataclass(frozen=True, slots=True)
class SessionDenied:
    """`worker` speaks for the gateway, for `lease_left_ms` at least, or is about to take it over."""

    gateway: Name
    worker: Name
    host: Text
    lease_left_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class ClaimGranted:
    binding: BindingView


@dataclass(frozen=True, slots=True)
class ClaimRefused:
    reason: ClaimRefusal
    holder: Address | None
    binding: Count | None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Taken, and in the log if there was something to log."""


@dataclass(frozen=True, slots=True)
class HeartbeatAcknowledged:
    """The lease runs for `lease_ms` from when the heartbeat with this nonce was sent."""

    gateway: Name
    epoch: Count
    nonce: Count
    lease_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class SessionOver:
    """Answer to a heartbeat: `epoch` is not the running session (any more); None: nobody knows why."""

    gateway: Name
    epoch: Count
    reason: SessionEnding | None


@dataclass(frozen=True, slots=True)
class WithdrawBinding:
    """Order: remove it from the kernel, then report BindingWithdrawn with this reason."""

    gateway: Name
    binding: Count
    reason: Ending


@dataclass(frozen=True, slots=True)
class ResendFrom:
    """Something was lost on the way: send again from `sequence` on."""

    sequence: Count


@dataclass(frozen=True, slots=True)
class OutboxSuperseded:
    """A worker of this name with a newer outbox (`incarnation`) was heard; nothing of this one is taken."""

    incarnation: Count


@dataclass(frozen=True, slots=True)
class CheckpointMade:
    """The latest checkpoint, a signed note; sent to every worker, and to whoever asks.

    `proof`: that its log continues the one that had `since` records (RFC 6962's consistency proof); nothing
    is shown where `since` is 0.
    """

    note: Note
    since: Count
    proof: tuple[Hash, ...]


@dataclass(frozen=True, slots=True)
class NoCheckpoint:
    reason: Text


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """Whoever sent it may not: nothing was taken of it. A worker keeps the message; the key may yet come."""

    reason: Text


@dataclass(frozen=True, slots=True)
class Protection:
    """`key`: of whoever signs here, its public half; `size`: the last checkpoint is over so many records.

    `made_ns`: when that was, None if there is none yet.
    """

    key: Text
    size: Count
    made_ns: Nanoseconds | None


@dataclass(frozen=True, slots=True)
class Place:
    """A service of a gateway."""

    gateway: Name
    service: Name


@dataclass(frozen=True, slots=True)
class PortFound:
    """`places`: the services that fit, whoever holds them; `bindings`: at most BINDINGS_LIMIT."""

    places: tuple[Place, ...]
    bindings: tuple[BindingView, ...]


@dataclass(frozen=True, slots=True)
class RestrictionView:
    """Who may not claim, by an operator's word; fields None mean all. `host`: barred, or reserved for."""

    restraint: Restraint
    gateway: Name | None
    service: Name | None
    host: Address | None
    since_ns: Nanoseconds
    until_ns: Nanoseconds | None
    by: Text
    why: Text


@dataclass(frozen=True, slots=True)
class WithdrawalView:
    """A binding that an operator has ended, and whose worker has not yet said that the kernel lets go."""

    binding: Count
    ending: Ending


@dataclass(frozen=True, slots=True)
class SessionView:
    gateway: Name
    epoch: Count
    worker: Name
    host: Text
    lost: bool
    lease_left_ms: Milliseconds
    bindings: Count


@dataclass(frozen=True, slots=True)
class Counter:
    name: Text
    value: Count


@dataclass(frozen=True, slots=True)
class Status:
    """`bindings_omitted`: how many did not fit into the frame; the log has them all.

    `protection`: None where no key signs checkpoints, so that nothing of the log is protected.
    """

    version: Text
    run: Count
    started_ns: Nanoseconds
    records: Count
    sessions: tuple[SessionView, ...]
    bindings: tuple[BindingView, ...]
    bindings_omitted: Count
    counters: tuple[Counter, ...]
    protection: Protection | None
    restrictions: tuple[RestrictionView, ...]
    withdrawals: tuple[WithdrawalView, ...]


Durable = OpenSession | CloseSession | ClaimPort | Report
"""Kept in the outbox until answered; sequence 1, 2, 3…"""
Volatile = Heartbeat | GetStatus | GetCheckpoint | FindPort | ReadFeed | GetState | MakeCheckpoint | Order
"""Sent once, with sequence 0."""
Body = Durable | Volatile
ReplyBody = (
    SessionGranted
    | SessionDenied
    | ClaimGranted
    | ClaimRefused
    | Acknowledged
    | HeartbeatAcknowledged
    | SessionOver
    | WithdrawBinding
    | ResendFrom
    | OutboxSuperseded
    | Status
    | CheckpointMade
    | NoCheckpoint
    | PortFound
    | FeedRecords
    | FeedGap
    | FeedRefused
    | StatePart
    | OrderReply
    | NotAllowed
)

REQUEST_KINDS: Final[dict[int, type[Body]]] = {
    2: CloseSession,
    3: ClaimPort,
    5: OpenSession,
    10: BindingInstalled,
    12: HolderNamed,
    13: KernelStateRestored,
    14: PublicAddressChanged,
    15: QueueOverflowed,
    16: BindingWithdrawn,
    17: OutboxFilled,
    20: Heartbeat,
    21: GetStatus,
    22: GetCheckpoint,
    23: MakeCheckpoint,
    30: FindPort,
    31: ReadFeed,
    32: GetState,
    40: ReleaseBinding,
    41: RevokeBinding,
    42: LiftBar,
    43: ReservePort,
    44: EndReservation,
    45: FreezeClaims,
    46: EndFreeze,
}
REPLY_KINDS: Final[dict[int, type[ReplyBody]]] = {
    2: SessionDenied,
    3: ClaimGranted,
    4: ClaimRefused,
    5: Acknowledged,
    6: SessionGranted,
    20: HeartbeatAcknowledged,
    21: SessionOver,
    22: WithdrawBinding,
    23: ResendFrom,
    24: OutboxSuperseded,
    25: Status,
    26: CheckpointMade,
    27: NoCheckpoint,
    28: NotAllowed,
    30: PortFound,
    31: FeedRecords,
    32: FeedGap,
    33: FeedRefused,
    34: StatePart,
    40: OrderTaken,
    41: OrderRefused,
    42: Withdrawing,
    43: Withdrawn,
}
_VOLATILE: Final = typing.get_args(Volatile)
_REQUEST_NUMBERS = {shape: number for number, shape in REQUEST_KINDS.items()}
_REPLY_NUMBERS = {shape: number for number, shape in REPLY_KINDS.items()}


@dataclass(frozen=True, slots=True)
class Request:
    """`acknowledged`: the worker has all answers up to it; `age_ms`: since its submission, by its clock."""

    worker: Name
    incarnation: Count
    sequence: Count
    acknowledged: Count
    age_ms: Milliseconds
    sent_ns: Nanoseconds
    body: Body


@dataclass(frozen=True, slots=True)
class Reply:
    """`sequence` is that of the request answered, 0 for what answers none."""

    incarnation: Count
    sequence: Count
    body: ReplyBody


@dataclass(frozen=True, slots=True)
class _RequestHead:
    worker: Name
    incarnation: Count
    sequence: Count
    acknowledged: Count
    age_ms: Milliseconds
    sent_ns: Nanoseconds


@dataclass(frozen=True, slots=True)
class _ReplyHead:
    incarnation: Count
    sequence: Count


Shape = TypeVar("Shape")


def encode_request(request: Request) -> bytes:
    """The frame; ProtocolError if no tracker would take it."""
    head = (request.worker, request.incarnation, request.sequence, request.acknowledged, request.age_ms)
    kind = _REQUEST_NUMBERS[type(request.body)]
    frame = _to_frame((VERSION, kind, *head, request.sent_ns, pack(request.body)), REQUEST_LIMIT)
    decode_request(frame)
    return frame


def decode_request(frame: bytes) -> Request:
    """The request; ProtocolError names what is wrong."""
    values = _from_frame(frame, REQUEST_LIMIT)
    shape = _kind(values, REQUEST_KINDS)
    head = unpack(_RequestHead, values[2:-1], "request")
    if head.worker == TRACKER:
        raise ProtocolError("request.worker", f"{TRACKER!r} is the tracker's own name")
    if (head.sequence == 0) != (shape in _VOLATILE):
        raise ProtocolError("request.sequence", f"{head.sequence} does not go with {shape.__name__}")
    if head.sequence and head.acknowledged >= head.sequence:
        raise ProtocolError("request.acknowledged", f"{head.acknowledged} is not before {head.sequence}")
    body: Any = unpack(shape, values[-1])
    return Request(
        head.worker, head.incarnation, head.sequence, head.acknowledged, head.age_ms, head.sent_ns, body
    )


def encode_reply(reply: Reply) -> bytes:
    """The frame; ProtocolError if no worker would take it."""
    kind = _REPLY_NUMBERS[type(reply.body)]
    return _to_frame((VERSION, kind, reply.incarnation, reply.sequence, pack(reply.body)), REPLY_LIMIT)


def decode_reply(frame: bytes) -> Reply:
    """The reply; ProtocolError names what is wrong."""
    values = _from_frame(frame, REPLY_LIMIT)
    shape = _kind(values, REPLY_KINDS)
    head = unpack(_ReplyHead, values[2:-1], "reply")
    body: Any = unpack(shape, values[-1])
    return Reply(head.incarnation, head.sequence, body)


def encode_body(body: Durable) -> bytes:
    """What the outbox keeps of a message: its kind and body."""
    return _to_frame((VERSION, _REQUEST_NUMBERS[type(body)], pack(body)), REQUEST_LIMIT)


def decode_body(data: bytes) -> Durable:
    """The message from the outbox."""
    values = _from_frame(data, REQUEST_LIMIT)
    body: Any = unpack(_kind(values, REQUEST_KINDS), values[-1])
    durable: Durable = body  # nothing else is put into an outbox
    return durable


def _kind(values: tuple[object, ...], kinds: dict[int, type[Shape]]) -> type[Shape]:
    if len(values) < 3:
        raise ProtocolError("frame", f"{len(values)} values are no message")
    version, kind = values[:2]
    if type(version) is not int or version != VERSION:
        raise ProtocolError("version", f"{shown(version)} is not spoken here, only {VERSION}")
    if type(kind) is not int or kind not in kinds:
        raise ProtocolError("kind", f"{shown(kind)} is not known")
    return kinds[kind]


def _to_frame(values: tuple[object, ...], limit: int) -> bytes:
    try:
        frame: bytes = msgpack.packb(values, use_bin_type=True)
    except (ValueError, OverflowError) as error:  # numbers beyond 64 bits, text that is no Unicode
        raise ProtocolError("frame", str(error)) from error
    if len(frame) > limit:
        raise ProtocolError("frame", f"{len(frame)} octets, limit {limit}")
    return frame


def _from_frame(frame: bytes, limit: int) -> tuple[object, ...]:
    if len(frame) > limit:
        raise ProtocolError("frame", f"{len(frame)} octets, limit {limit}")
    try:
        values: object = msgpack.unpackb(frame, use_list=False, raw=False, strict_map_key=True)
        canonical = isinstance(values, tuple) and msgpack.packb(values, use_bin_type=True) == frame
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError("frame", f"no msgpack: {error}") from error
    if not isinstance(values, tuple) or not canonical:
        raise ProtocolError("frame", "no array, or not in its canonical form")
    return values
