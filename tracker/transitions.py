"""The tracker's state, and what each event makes of it.

Rule 1: every transition is here, and of who may not claim in `restrictions`; replay only applies, so nothing
here decides. Rule 2: no clock and no I/O. Rule 3: what no event says is not logged: leases, counts of
refusals, the clock's offset, who waits to take over; a restart forgets it.
"""

from dataclasses import dataclass, field
from typing import Final, assert_never

from tracker import restrictions
from tracker.events import (
    BarLifted,
    BindingInstalled,
    BindingWithdrawn,
    ClaimDenied,
    ClaimsFrozen,
    ClockStepped,
    Ending,
    Event,
    FreezeEnded,
    HolderNamed,
    HostBarred,
    KernelStateRestored,
    KeyChanged,
    OutboxFilled,
    PortBound,
    PortRefused,
    PortReserved,
    PortUnbound,
    PublicAddressChanged,
    QueueOverflowed,
    RecordRedacted,
    RecordsMissed,
    RefusalsEnded,
    ReservationEnded,
    Resource,
    SegmentArchived,
    SegmentClosed,
    SegmentPruned,
    ServiceDefined,
    ServiceDefinition,
    ServiceRemoved,
    SessionEnded,
    SessionEnding,
    SessionOpened,
    SessionRefused,
    SnapshotTaken,
    TrackerStarted,
    TrackerStopped,
    WithdrawalOrdered,
    WorkerLost,
    WorkerReturned,
)
from tracker.messages import BindingView, ReplyBody, WithdrawBinding
from tracker.restrictions import Restrictions

MILLISECOND_NS: Final = 1_000_000


# ---- what changes it -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    gateway: str
    deadline_ns: int
    heard_ns: int


@dataclass(frozen=True, slots=True)
class RefusalCounted:
    binding: int
    claimant: bytes
    at_ns: int


@dataclass(frozen=True, slots=True)
class ClockSeen:
    """Wall minus monotonic: what should not jump."""

    offset_ns: int


@dataclass(frozen=True, slots=True)
class TakerSeen:
    """`worker` on another host takes the fenced gateway over, and asks again until its lease has ended."""

    gateway: str
    worker: str
    host: str
    until_ns: int


Unlogged = LeaseRenewed | RefusalCounted | ClockSeen | TakerSeen
"""Changes of the state that are forgotten at a restart."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`events` go to the log, in this order, before `reply` goes out.

    `orders` go to workers, by name, after it.
    """

    events: tuple[Event, ...] = ()
    unlogged: tuple[Unlogged, ...] = ()
    reply: ReplyBody | None = None
    orders: tuple[tuple[str, WithdrawBinding], ...] = ()


# ---- what it remembers -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Session:
    """`deadline_ns`: the lease's end, monotonic; `heard_ns`: wall time of the last heartbeat, or of opening.

    `lease_ms`: as its worker was told. `fence`: its kernel forwards only while the lease runs.
    What is not compared, is not logged; `image` says what becomes of it at a restart.
    """

    epoch: int
    worker: str
    host: str
    public_addresses: tuple[bytes, ...]
    opened_ns: int
    lease_ms: int
    fence: bool
    lost_since_ns: int | None = None
    refused: set[str] = field(default_factory=set)
    deadline_ns: int = field(default=0, compare=False)
    heard_ns: int = field(default=0, compare=False)


@dataclass(slots=True)
class Gateway:
    """`epoch`, `worker`, `host`: the last given; `trusted_epoch`: the first since another worker spoke.

    `moved_epoch`: the first on this host, when the one before lives on beside it; else 0. `taker`: who waits
    to take over; the lease is not renewed meanwhile, and nobody else gets the gateway. It is not logged.
    """

    epoch: int = 0
    worker: str | None = None
    host: str | None = None
    trusted_epoch: int = 0
    moved_epoch: int = 0
    session: Session | None = None
    last_ending: SessionEnding | None = None
    services: dict[str, ServiceDefinition] = field(default_factory=dict)
    bindings: set[int] = field(default_factory=set)
    taker: TakerSeen | None = field(default=None, compare=False)


@dataclass(slots=True)
class Refusals:
    first_ns: int
    count: int = field(default=1, compare=False)
    last_ns: int = field(default=0, compare=False)


@dataclass(slots=True)
class Binding:
    """`ordered`: an operator has ended it, and its worker has not yet said that the kernel lets go."""

    bound: PortBound
    since_ns: int
    user_name: str | None = None
    ordered: Ending | None = None
    refusals: dict[bytes, Refusals] = field(default_factory=dict)

    def view(self) -> BindingView:
        bound = self.bound
        return BindingView(
            bound.binding, bound.resource, bound.holder, bound.mac, bound.epoch, self.since_ns, self.user_name
        )


@dataclass(slots=True)
class State:
    """Everything that decisions depend on; `highest_wall_ns` is of the records since the last clock step.

    `key`: the public key that signs the log's checkpoints. Whatever is added here goes into `image`, too.
    """

    lease_ms: int = field(compare=False)
    run: int = 0
    gateways: dict[str, Gateway] = field(default_factory=dict)
    bindings: dict[int, Binding] = field(default_factory=dict)
    held: dict[Resource, int] = field(default_factory=dict)
    next_binding: int = 1
    highest_wall_ns: int | None = None
    key: str | None = None
    restrictions: Restrictions = field(default_factory=dict)
    clock_offset_ns: int | None = field(default=None, compare=False)


# ---- apply -----------------------------------------------------------------------------------------------


def apply(  # noqa: C901, PLR0912 (one branch for each event: a table in the shape of a match)
    state: State, event: Event, wall_ns: int
) -> None:
    """Makes `event`, recorded at `wall_ns`, part of the state. One that does not fit raises KeyError."""
    apply_time(state, wall_ns, stepped=isinstance(event, ClockStepped))
    match event:
        case TrackerStarted():
            state.run = event.run
        case KeyChanged():
            state.key = event.key
        case ServiceDefined():
            state.gateways.setdefault(event.gateway, Gateway()).services[event.service.name] = event.service
        case ServiceRemoved():
            del state.gateways[event.gateway].services[event.name]
        case SessionOpened():
            _apply_opened(state, event, wall_ns)
        case SessionRefused():
            _open(state, event.gateway).refused.add(event.worker)
        case SessionEnded():
            gateway = state.gateways[event.gateway]
            gateway.session, gateway.last_ending = None, event.reason
        case WorkerLost():
            _open(state, event.gateway).lost_since_ns = event.last_heard_ns
        case WorkerReturned():
            _open(state, event.gateway).lost_since_ns = None
        case PortBound():
            _apply_bound(state, event, wall_ns)
        case PortRefused():
            state.bindings[event.binding].refusals[event.claimant] = Refusals(wall_ns, 1, wall_ns)
        case PortUnbound():
            _apply_unbound(state, event)
        case HolderNamed():
            state.bindings[event.binding].user_name = event.user_name
        case WithdrawalOrdered():
            state.bindings[event.binding].ordered = event.ending
        case (
            HostBarred() | BarLifted() | PortReserved() | ReservationEnded() | ClaimsFrozen() | FreezeEnded()
        ):
            restrictions.apply(state.restrictions, event, wall_ns)
        case ClaimDenied():
            restrictions.apply(state.restrictions, event, wall_ns)
        case PublicAddressChanged():
            _apply_address(state, event)
        case TrackerStopped() | ClockStepped() | RecordsMissed() | RefusalsEnded() | SnapshotTaken():
            pass
        case RecordRedacted() | SegmentClosed() | SegmentArchived() | SegmentPruned():
            pass
        case BindingInstalled() | BindingWithdrawn() | KernelStateRestored() | QueueOverflowed():
            pass
        case OutboxFilled():
            pass
        case _:
            assert_never(event)


def apply_time(state: State, wall_ns: int, *, stepped: bool = False) -> None:
    """Makes the time of a record part of the state, whatever else the record says."""
    if stepped or state.highest_wall_ns is None:
        state.highest_wall_ns = wall_ns
    else:
        state.highest_wall_ns = max(wall_ns, state.highest_wall_ns)


def apply_unlogged(state: State, change: Unlogged) -> None:
    """Makes a change part of the state that no log remembers."""
    match change:
        case LeaseRenewed():
            session = _open(state, change.gateway)
            session.deadline_ns, session.heard_ns = change.deadline_ns, change.heard_ns
        case RefusalCounted():
            refusals = state.bindings[change.binding].refusals[change.claimant]
            refusals.count += 1
            refusals.last_ns = change.at_ns
        case ClockSeen():
            state.clock_offset_ns = change.offset_ns
        case TakerSeen():
            state.gateways[change.gateway].taker = change
        case _:
            assert_never(change)


def _open(state: State, gateway: str) -> Session:
    session = state.gateways[gateway].session
    if session is None:
        raise KeyError(f"no session of gateway {gateway!r} is open")
    return session


def _apply_opened(state: State, event: SessionOpened, wall_ns: int) -> None:
    gateway = state.gateways.setdefault(event.gateway, Gateway())
    gateway.trusted_epoch = trusted_epoch(gateway, event.epoch, event.worker)
    gateway.moved_epoch = moved_epoch(gateway, event.epoch, event.host)
    gateway.taker = None
    gateway.epoch, gateway.worker, gateway.host = event.epoch, event.worker, event.host
    gateway.session = Session(
        event.epoch,
        event.worker,
        event.host,
        event.public_addresses,
        opened_ns=wall_ns,
        lease_ms=event.lease_ms,
        fence=event.fence,
        heard_ns=wall_ns,
    )


def _apply_bound(state: State, event: PortBound, wall_ns: int) -> None:
    if event.resource in state.held:
        raise KeyError(f"binding {event.binding} of a resource that {state.held[event.resource]} holds")
    state.bindings[event.binding] = Binding(event, wall_ns)
    state.held[event.resource] = event.binding
    state.gateways[event.resource.gateway].bindings.add(event.binding)
    state.next_binding = event.binding + 1


def _apply_unbound(state: State, event: PortUnbound) -> None:
    resource = state.bindings.pop(event.binding).bound.resource
    del state.held[resource]
    state.gateways[resource.gateway].bindings.remove(event.binding)


def _apply_address(state: State, event: PublicAddressChanged) -> None:
    gateway = state.gateways.get(event.gateway)
    session = None if gateway is None else gateway.session
    if session is None or session.epoch != event.epoch:
        return
    kept = tuple(address for address in session.public_addresses if address not in (event.old, event.new))
    session.public_addresses = kept if event.new is None else (*kept, event.new)


def trusted_epoch(gateway: Gateway, epoch: int, worker: str) -> int:
    """Of the session `epoch` of `worker`."""
    return gateway.trusted_epoch if gateway.worker == worker else epoch


def moved_epoch(gateway: Gateway, epoch: int, host: str) -> int:
    """Of the session `epoch` on `host`; a machine that was started anew has not moved, its kernel is gone."""
    if gateway.host is None or gateway.host == host:
        return gateway.moved_epoch
    machine, boot = _machine_and_boot(host)
    machine_before, boot_before = _machine_and_boot(gateway.host)
    return epoch if machine != machine_before or boot == boot_before else 0


def _machine_and_boot(host: str) -> tuple[str, str]:
    machine, _, rest = host.partition("/")
    return machine, rest.partition("/")[0]
