"""Who owns a port.

Rule 1: every transition is here (of who may not claim: in `restrictions`): `decide` says what happens,
`apply` makes it so, replay only applies. Rule 2: nothing here reads a clock or does I/O; now is an argument.
Rule 3: a resource is free, or one binding holds it; it becomes free only when a worker said that the kernel
has nothing of it any more. Rule 4: an epoch is given once, to one worker; what an older one commands is
refused, what it saw of an open binding is still taken, unless another worker has taken over since. Rule 5:
what is not logged (leases, counts of refusals, the clock's offset) decides nothing that is, except that a
lease ran out. Rule 6: a lease is never cut short because the tracker did not listen. Rule 7: the kernel of a
fenced session may forward until its lease has ended, and no batch from another host stops it: so whoever
comes from there waits until then. Rule 8: an operator's order to end a binding stands until it is over; the
worker is told with each heartbeat and session.

Longer than other modules because of Rule 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Final, assert_never

from eventlog.record import CLOCK_TOLERANCE_NS, clock_went_back
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
    Policy,
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
    Restraint,
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
    Sharing,
    SnapshotTaken,
    TrackerStarted,
    TrackerStopped,
    WithdrawalOrdered,
    WorkerLost,
    WorkerReturned,
)
from tracker.instant import Instant
from tracker.messages import (
    BINDINGS_LIMIT,
    Acknowledged,
    BindingView,
    ClaimGranted,
    ClaimPort,
    ClaimRefusal,
    ClaimRefused,
    CloseSession,
    Durable,
    Heartbeat,
    HeartbeatAcknowledged,
    OpenSession,
    ReplyBody,
    SessionDenied,
    SessionGranted,
    SessionOver,
    WithdrawBinding,
)
from tracker.orders import (
    FreezeClaims,
    Order,
    OrderRefused,
    OrderTaken,
    ReleaseBinding,
    ReservePort,
    RevokeBinding,
    Withdrawing,
    Withdrawn,
)
from tracker.restrictions import Restrictions, Scope

MILLISECOND_NS: Final = 1_000_000
REFUSED_HOSTS_LIMIT: Final = 1024
"""So many hosts are told apart whose claims are refused for one reason; the others count as one."""
OTHER_HOSTS: Final = bytes(4)
TAKE_OVER_PAUSE_NS: Final = 1_000 * MILLISECOND_NS
"""So long the last one's binding is left alone: two that want it must not fight for it packet by packet."""
TAKER_HEARD_NS: Final = 5_000_000_000
"""Who wants to take over asks anew at least each two seconds (rewriter/gateway.py); so long it is heeded."""


# ---- what can be asked of it -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FromWorker:
    """A message of `worker`, `age_ms` old when it was sent."""

    worker: str
    body: Durable | Heartbeat
    age_ms: int = 0


@dataclass(frozen=True, slots=True)
class FromOperator:
    """An order, and who gave it; `again`: he waits for its end already, and repeats it."""

    by: str
    body: Order
    again: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """The tracker begins on this state; `previous_alive_ns`: its predecessor was last known to live then.

    `key_change`: it has another signing key than the log knows of.
    """

    version: str
    boot: str
    previous_alive_ns: int | None
    key_change: KeyChanged | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """The tracker ends, cleanly."""


@dataclass(frozen=True, slots=True)
class PassTime:
    """Nothing came; look at the leases and at the clock."""


@dataclass(frozen=True, slots=True)
class WasAway:
    """The tracker did not listen for `away_ns`: stopped, swapped out, or waiting for its disk."""

    away_ns: int


Command = FromWorker | FromOperator | Start | Stop | PassTime | WasAway


# ---- what it says ----------------------------------------------------------------------------------------


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


# ---- decide ----------------------------------------------------------------------------------------------


def decide(state: State, command: Command, now: Instant) -> Decision:
    """What `command` leads to at `now`; changes nothing."""
    stepped, seen = _look_at_clock(state, now)
    decision = _decide(state, command, now)
    return replace(decision, events=(*stepped, *decision.events), unlogged=(*seen, *decision.unlogged))


def next_deadline(state: State) -> int | None:
    """When PassTime has something to do, by the monotonic clock; None: never, as things stand."""
    leases = (session.deadline_ns for _, session in _leases(state))
    offset_ns = state.clock_offset_ns or 0
    bars = (it.until_ns - offset_ns for it in state.restrictions.values() if it.until_ns is not None)
    return min((*leases, *bars), default=None)


def _decide(state: State, command: Command, now: Instant) -> Decision:
    match command:
        case FromWorker():
            return _from_worker(state, command, now)
        case FromOperator():
            return _from_operator(state, command, now)
        case Start():
            return _start(state, command, now)
        case Stop():
            return Decision((TrackerStopped(state.run),))
        case PassTime():
            lifted = restrictions.over(state.restrictions, now.wall_ns)
            return Decision((*_lost_workers(state, now), *lifted))
        case WasAway(away_ns):
            later = (
                LeaseRenewed(name, session.deadline_ns + away_ns, session.heard_ns)
                for name, session in _leases(state)
            )
            return Decision(unlogged=tuple(later))
        case _:
            assert_never(command)


def _from_worker(state: State, command: FromWorker, now: Instant) -> Decision:
    worker = command.worker
    match command.body:
        case OpenSession() as body:
            return _open_session(state, worker, body, command.age_ms, now)
        case CloseSession() as body:
            return _close_session(state, worker, body)
        case ClaimPort() as body:
            return _claim(state, worker, body, command.age_ms, now)
        case Heartbeat() as body:
            return _heartbeat(state, worker, body, now)
        case BindingInstalled() | BindingWithdrawn() | HolderNamed() as body:
            return Decision(tuple(_report(state, worker, body)), reply=Acknowledged())
        case KernelStateRestored() | PublicAddressChanged() | QueueOverflowed() | OutboxFilled() as body:
            return Decision(tuple(_fact(state, worker, body)), reply=Acknowledged())
        case _:
            assert_never(command.body)


def _fact(
    state: State,
    worker: str,
    body: KernelStateRestored | PublicAddressChanged | QueueOverflowed | OutboxFilled,
) -> Iterator[Event]:
    """A hole is a fact, whoever saw it; the address of another worker's session is that one's to change."""
    known = state.gateways.get(body.gateway)
    session = None if known is None else known.session
    is_anothers = session is not None and session.epoch == body.epoch and session.worker != worker
    if not (isinstance(body, PublicAddressChanged) and is_anothers):
        yield body


def _look_at_clock(state: State, now: Instant) -> tuple[tuple[ClockStepped, ...], tuple[ClockSeen, ...]]:
    offset_ns = now.wall_ns - now.monotonic_ns
    drift_ns = 0 if state.clock_offset_ns is None else offset_ns - state.clock_offset_ns
    # Followed in small steps, so that slewing never adds up to a jump.
    news = state.clock_offset_ns is None or abs(drift_ns) > MILLISECOND_NS
    seen = (ClockSeen(offset_ns),) if news else ()
    if abs(drift_ns) > CLOCK_TOLERANCE_NS:
        return (ClockStepped(max(0, now.wall_ns - drift_ns), now.wall_ns),), seen
    if state.highest_wall_ns is not None and clock_went_back(state.highest_wall_ns, now.wall_ns):
        return (ClockStepped(state.highest_wall_ns, now.wall_ns),), seen
    return (), seen


def _open_session(state: State, worker: str, body: OpenSession, age_ms: int, now: Instant) -> Decision:
    if age_ms * MILLISECOND_NS > TAKER_HEARD_NS:
        body = replace(body, take_over=False)  # the operator may have given up meanwhile
    gateway = state.gateways.get(body.gateway, Gateway())
    session, taker = gateway.session, _taker(gateway, now)
    if taker is not None and taker.worker != worker and not body.take_over:
        left_ns = 0 if session is None else max(0, session.deadline_ns - now.monotonic_ns)
        denied = SessionDenied(body.gateway, taker.worker, taker.host, left_ns // MILLISECOND_NS)
        return Decision(reply=denied)
    if session is not None and _runs(session, now) and not _may_replace(session, worker, body):
        return _deny_session(session, worker, body, now)
    epoch = gateway.epoch + 1
    events: list[Event] = []
    if session is not None:
        reason = _replaced(session, worker, now)
        events.append(SessionEnded(body.gateway, session.epoch, session.worker, reason))
    lease_ms, addresses = _lease_ms(state, session, now), body.public_addresses
    events.append(SessionOpened(body.gateway, epoch, worker, body.host, addresses, lease_ms, body.fence))
    events.extend(_changed_services(gateway, body))
    bindings = tuple(state.bindings[number].view() for number in sorted(gateway.bindings))
    since = _trusted_epoch(gateway, epoch, worker), _moved_epoch(gateway, epoch, body.host)
    reply = SessionGranted(body.gateway, epoch, lease_ms, now.wall_ns, *since, bindings)
    orders = tuple(_withdrawals(state, body.gateway, worker))
    return Decision(tuple(events), (_renewed(body.gateway, lease_ms, now),), reply, orders)


def _lease_ms(state: State, replaced: Session | None, now: Instant) -> int:
    """A new session's lease: never shorter than the one that its gateway's kernel may still be counting.

    The kernel forgets that one with the new epoch's table, which may never come: a grant can get lost with
    its worker. So a tracker with a shorter lease_s keeps to the longer one until a session has ended.
    """
    if replaced is None or not replaced.fence or not _runs(replaced, now):
        return state.lease_ms
    return max(state.lease_ms, replaced.lease_ms)


def _runs(session: Session, now: Instant) -> bool:
    return session.lost_since_ns is None and session.deadline_ns > now.monotonic_ns


def _may_replace(session: Session, worker: str, body: OpenSession) -> bool:
    """Whether it may while its lease runs: its own worker, and whom the operator sends.

    Under fence only on the same host, where the new epoch's table replaces the old one and its lease. Another
    host has to wait, also for its own name: that can be a machine that was started anew, or a second one.
    """
    if session.fence and session.host != body.host:
        return False
    return body.take_over or session.worker == worker


def _taker(gateway: Gateway, now: Instant) -> TakerSeen | None:
    """Who is waiting to take over, unless nothing was heard of it for a while."""
    taker = gateway.taker
    return taker if taker is not None and taker.until_ns > now.monotonic_ns else None


def _deny_session(session: Session, worker: str, body: OpenSession, now: Instant) -> Decision:
    left_ms = (session.deadline_ns - now.monotonic_ns) // MILLISECOND_NS
    # Its lease is not renewed any more, so it ends, or its worker closes it on hearing so.
    until_ns = now.monotonic_ns + TAKER_HEARD_NS
    takes = (TakerSeen(body.gateway, worker, body.host, until_ns),) if body.take_over else ()
    events = () if worker in session.refused else (_refused(session, worker, body),)
    return Decision(events, takes, SessionDenied(body.gateway, session.worker, session.host, left_ms))


def _refused(session: Session, worker: str, body: OpenSession) -> SessionRefused:
    return SessionRefused(body.gateway, session.epoch, worker, body.host)


def _trusted_epoch(gateway: Gateway, epoch: int, worker: str) -> int:
    """Of the session `epoch` of `worker`."""
    return gateway.trusted_epoch if gateway.worker == worker else epoch


def _moved_epoch(gateway: Gateway, epoch: int, host: str) -> int:
    """Of the session `epoch` on `host`; a machine that was started anew has not moved, its kernel is gone."""
    if gateway.host is None or gateway.host == host:
        return gateway.moved_epoch
    machine, boot = _machine_and_boot(host)
    machine_before, boot_before = _machine_and_boot(gateway.host)
    return epoch if machine != machine_before or boot == boot_before else 0


def _machine_and_boot(host: str) -> tuple[str, str]:
    machine, _, rest = host.partition("/")
    return machine, rest.partition("/")[0]


def _replaced(session: Session, worker: str, now: Instant) -> SessionEnding:
    if session.worker == worker:
        # Always granted: whoever has the outbox's lock and this name is its only process.
        return SessionEnding.REOPENED
    if session.lost_since_ns is not None or session.deadline_ns <= now.monotonic_ns:
        return SessionEnding.LEASE_ENDED
    return SessionEnding.TAKE_OVER


def _changed_services(gateway: Gateway, body: OpenSession) -> Iterator[Event]:
    wanted = {service.name: service for service in body.services}
    for name in sorted(gateway.services.keys() - wanted.keys()):
        yield ServiceRemoved(body.gateway, name)
    for name, service in wanted.items():
        if gateway.services.get(name) != service:
            yield ServiceDefined(body.gateway, service)


def _close_session(state: State, worker: str, body: CloseSession) -> Decision:
    if _session(state, worker, body.gateway, body.epoch) is None:
        return Decision(reply=Acknowledged())
    ended = SessionEnded(body.gateway, body.epoch, worker, SessionEnding.CLOSED)
    return Decision((ended,), reply=Acknowledged())


def _heartbeat(state: State, worker: str, body: Heartbeat, now: Instant) -> Decision:
    session = _session(state, worker, body.gateway, body.epoch)
    if session is None:
        gateway = state.gateways.get(body.gateway)
        reason = None if gateway is None else gateway.last_ending
        return Decision(reply=SessionOver(body.gateway, body.epoch, reason))
    if _taker(state.gateways[body.gateway], now) is not None:
        return Decision(reply=SessionOver(body.gateway, body.epoch, SessionEnding.TAKE_OVER))
    lost_ns = session.lost_since_ns
    back = () if lost_ns is None else (WorkerReturned(body.gateway, body.epoch, worker, lost_ns),)
    reply = HeartbeatAcknowledged(body.gateway, body.epoch, body.nonce, session.lease_ms)
    orders = tuple(_withdrawals(state, body.gateway, worker))
    return Decision(back, (_renewed(body.gateway, session.lease_ms, now),), reply, orders)


def _claim(state: State, worker: str, body: ClaimPort, age_ms: int, now: Instant) -> Decision:
    refusal = _unfit(state, worker, body, age_ms)
    if refusal is not None:
        return Decision(reply=ClaimRefused(refusal, None, None))
    resource = _wanted(state, body)
    number = state.held.get(resource)
    if number is None:
        return _denied(state, body) or _bind(state, body, resource, now)
    return _claim_held(state, body, number, now)


def _wanted(state: State, body: ClaimPort) -> Resource:
    """What it is about: per peer, another public address where another host has the peer at the first one."""
    resource = Resource(body.gateway, body.public_address, body.service, body.peer)
    session = state.gateways[body.gateway].session
    if body.peer is None or session is None:
        return resource
    others = (replace(resource, public_address=address) for address in session.public_addresses)
    places = list(dict.fromkeys((resource, *others)))
    for place in places:
        number = state.held.get(place)
        if number is not None and state.bindings[number].bound.holder == body.holder:
            return place
    return next((place for place in places if place not in state.held), resource)


def _claim_held(state: State, body: ClaimPort, number: int, now: Instant) -> Decision:
    binding = state.bindings[number]
    if binding.bound.holder == body.holder:
        if binding.ordered is not None:
            return Decision(reply=ClaimRefused(ClaimRefusal.ENDING, None, None))
        return Decision(reply=ClaimGranted(binding.view()))
    if _may_take_over(state, body, binding, now):
        # Not bound yet: the worker takes the old one from the kernel, says so, and claims again behind it.
        return _denied(state, body) or Decision(reply=WithdrawBinding(body.gateway, number, Ending.TAKE_OVER))
    reply = ClaimRefused(ClaimRefusal.HELD, binding.bound.holder, number)
    # Nor do claims from any number of addresses, which on a LAN can be anything.
    is_known = body.holder in binding.refusals or len(binding.refusals) < REFUSED_HOSTS_LIMIT
    claimant, mac = (body.holder, body.mac) if is_known else (OTHER_HOSTS, None)
    if claimant in binding.refusals:
        # A flood of claims fills no log: the first is a record, the rest a count.
        return Decision(unlogged=(RefusalCounted(number, claimant, now.wall_ns),), reply=reply)
    refused = PortRefused(
        number,
        claimant,
        mac,
        body.protocol,
        body.source_port,
        body.destination,
        body.destination_port,
    )
    return Decision((refused,), reply=reply)


def _may_take_over(state: State, body: ClaimPort, binding: Binding, now: Instant) -> bool:
    if state.gateways[body.gateway].services[body.service].policy is not Policy.LAST:
        return False
    return not 0 <= now.wall_ns - binding.since_ns < TAKE_OVER_PAUSE_NS


def _denied(state: State, body: ClaimPort) -> Decision | None:
    """The refusal of a free resource by an operator's word; None: nothing is said against it."""
    gateway, service, host = body.gateway, body.service, body.holder
    found = restrictions.denying(state.restrictions, gateway, service, host)
    if found is None:
        return None
    because = found.scope.restraint
    reply = ClaimRefused(_REFUSALS[because], None, None)
    mac = body.mac
    if (gateway, service, host) not in found.denied and len(found.denied) >= REFUSED_HOSTS_LIMIT:
        host, mac = OTHER_HOSTS, None
    if (gateway, service, host) in found.denied:
        return Decision(reply=reply)
    packet = (body.protocol, body.source_port, body.destination, body.destination_port)
    return Decision((ClaimDenied(gateway, service, host, because, mac, *packet),), reply=reply)


_REFUSALS: Final = {
    Restraint.REVOKED: ClaimRefusal.REVOKED,
    Restraint.RESERVED: ClaimRefusal.RESERVED,
    Restraint.FROZEN: ClaimRefusal.FROZEN,
}


def _unfit(  # noqa: PLR0911 (one return for each reason, in the order of their precedence)
    state: State, worker: str, body: ClaimPort, age_ms: int
) -> ClaimRefusal | None:
    if age_ms > body.claim_timeout_ms:
        return ClaimRefusal.STALE
    session = _session(state, worker, body.gateway, body.epoch)
    if session is None:
        return ClaimRefusal.STALE_EPOCH
    if body.public_address not in session.public_addresses:
        return ClaimRefusal.UNKNOWN_ADDRESS
    gateway = state.gateways[body.gateway]
    service = gateway.services.get(body.service)
    if service is None:
        return ClaimRefusal.UNKNOWN_SERVICE
    if (service.sharing is Sharing.PER_PEER) != (body.peer is not None):
        return ClaimRefusal.WRONG_SHARING
    if service.policy is Policy.FIXED and service.holder != body.holder:
        return ClaimRefusal.FIXED
    return None


def _bind(state: State, body: ClaimPort, resource: Resource, now: Instant) -> Decision:
    if len(state.gateways[body.gateway].bindings) >= BINDINGS_LIMIT:
        return Decision(reply=ClaimRefused(ClaimRefusal.FULL, None, None))
    bound = PortBound(
        state.next_binding,
        resource,
        body.holder,
        body.mac,
        body.epoch,
        body.protocol,
        body.source_port,
        body.destination,
        body.destination_port,
    )
    return Decision((bound,), reply=ClaimGranted(Binding(bound, now.wall_ns).view()))


def _report(
    state: State, worker: str, body: BindingInstalled | BindingWithdrawn | HolderNamed
) -> Iterator[Event]:
    gateway = state.gateways.get(body.gateway)
    binding = state.bindings.get(body.binding)
    if gateway is None or binding is None or binding.bound.resource.gateway != body.gateway:
        return  # said twice, or of a binding that is over: nothing new
    if gateway.worker != worker or not gateway.trusted_epoch <= body.epoch <= gateway.epoch:
        return  # another worker has taken over: it speaks for this binding now
    match body:
        case BindingInstalled():
            yield body
        case HolderNamed():
            if body.user_name != binding.user_name:
                yield body
        case BindingWithdrawn():
            yield body
            for claimant, refusals in sorted(binding.refusals.items()):
                yield RefusalsEnded(body.binding, claimant, refusals.count, refusals.last_ns)
            yield PortUnbound(body.binding, body.reason)
        case _:
            assert_never(body)


def _from_operator(state: State, command: FromOperator, now: Instant) -> Decision:
    by, order = command.by, command.body
    match order:
        case ReleaseBinding(binding, why):
            return _end_binding(state, WithdrawalOrdered(binding, Ending.RELEASE, by, why), (), now)
        case RevokeBinding(binding, _, why):
            bars = () if command.again else tuple(_bars(state, order, by, now))
            return _end_binding(state, WithdrawalOrdered(binding, Ending.REVOKE, by, why), bars, now)
        case ReservePort(gateway, service) if service not in _services(state, gateway):
            reason = (
                f"no service {service!r:.80} of a gateway {gateway!r:.80} is known; is its worker configured?"
            )
            return Decision(reply=OrderRefused(reason))
        case ReservePort(gateway, service, host) if no := _why_not_for(state, gateway, service, host):
            return Decision(reply=OrderRefused(no))
        case FreezeClaims(str(gateway)) if gateway not in state.gateways:
            return Decision(
                reply=OrderRefused(f"no gateway {gateway!r:.80} is known; has its worker ever come?")
            )
        case _:
            events = tuple(restrictions.decide(state.restrictions, order, by))
            return Decision(events, reply=OrderTaken(bool(events)))


def _end_binding(
    state: State, ordered: WithdrawalOrdered, bars: tuple[HostBarred, ...], now: Instant
) -> Decision:
    number = ordered.binding
    binding = state.bindings.get(number)
    if binding is None:
        if not 0 < number < state.next_binding:
            return Decision(reply=OrderRefused(f"there never was a binding {number}"))
        return Decision(reply=Withdrawn(number, None, None))
    gateway = binding.bound.resource.gateway
    session = state.gateways[gateway].session
    events: tuple[Event, ...] = bars if binding.ordered is ordered.ending else (*bars, ordered)
    if session is None:
        return Decision(events, reply=Withdrawing(number, None, lost=True))
    lost = session.lost_since_ns is not None or session.deadline_ns <= now.monotonic_ns
    withdrawal = WithdrawBinding(gateway, number, ordered.ending)
    reply = Withdrawing(number, session.worker, lost)
    return Decision(events, reply=reply, orders=((session.worker, withdrawal),))


def _bars(state: State, order: RevokeBinding, by: str, now: Instant) -> Iterator[HostBarred]:
    binding = state.bindings.get(order.binding)
    if binding is None:
        return
    barred_ns = None if order.barred_ms is None else order.barred_ms * MILLISECOND_NS
    gateway, service = binding.bound.resource.gateway, binding.bound.resource.service
    if binding.ordered is Ending.REVOKE:
        # Revoked before, and the worker has not let go yet: the bar may have been lifted, or be shorter.
        scope = Scope(Restraint.REVOKED, gateway, service, binding.bound.holder)
        known = state.restrictions.get(scope)
        if known is not None and known.length_ns == barred_ns:
            return
    until_ns = None if barred_ns is None else now.wall_ns + barred_ns
    yield HostBarred(gateway, service, binding.bound.holder, until_ns, by, order.why)


def _withdrawals(state: State, gateway: str, worker: str) -> Iterator[tuple[str, WithdrawBinding]]:
    """What the gateway's worker has been ordered to end, and has not yet."""
    for number in sorted(state.gateways[gateway].bindings if gateway in state.gateways else ()):
        ordered = state.bindings[number].ordered
        if ordered is not None:
            yield worker, WithdrawBinding(gateway, number, ordered)


def _services(state: State, gateway: str) -> dict[str, ServiceDefinition]:
    known = state.gateways.get(gateway)
    return {} if known is None else known.services


def _why_not_for(state: State, gateway: str, service: str, host: bytes) -> str | None:
    """Why reserving the service for this host would keep everybody from it; None: it would not."""
    address = IPv4Address(host)
    session, definition = state.gateways[gateway].session, state.gateways[gateway].services[service]
    if address.is_unspecified or address.is_multicast or address.is_loopback or address.is_reserved:
        return f"{address} is no address that a host can have"
    if session is not None and host in session.public_addresses:
        return f"{address} is the gateway's own public address; a reservation is for a host behind it"
    if definition.policy is Policy.FIXED and definition.holder not in (None, host):
        return (
            f"{service} is {IPv4Address(definition.holder)}'s by configuration (policy fixed), nobody else's"
        )
    return None


def _start(state: State, command: Start, now: Instant) -> Decision:
    started = TrackerStarted(state.run + 1, command.version, command.boot, command.previous_alive_ns)
    alive_ns = command.previous_alive_ns or 0
    # A full period for everybody, never a shorter one: while the tracker was away nobody could renew.
    leases = tuple(
        LeaseRenewed(
            name,
            now.monotonic_ns + session.lease_ms * MILLISECOND_NS,
            # Whoever was not lost then had been heard within the lease before.
            max(session.heard_ns, alive_ns - session.lease_ms * MILLISECOND_NS),
        )
        for name, session in _leases(state)
    )
    return Decision((started,) if command.key_change is None else (command.key_change, started), leases)


def _lost_workers(state: State, now: Instant) -> Iterator[WorkerLost]:
    for name, session in _leases(state):
        if session.deadline_ns <= now.monotonic_ns:
            yield WorkerLost(name, session.epoch, session.worker, session.heard_ns)


def _leases(state: State) -> Iterator[tuple[str, Session]]:
    for name, gateway in state.gateways.items():
        if gateway.session is not None and gateway.session.lost_since_ns is None:
            yield name, gateway.session


def _session(state: State, worker: str, gateway: str, epoch: int) -> Session | None:
    """The gateway's session, if it is this worker's and of this epoch."""
    found = state.gateways.get(gateway)
    if found is None or found.session is None:
        return None
    session = found.session
    return session if session.worker == worker and session.epoch == epoch else None


def _renewed(gateway: str, lease_ms: int, now: Instant) -> LeaseRenewed:
    return LeaseRenewed(gateway, now.monotonic_ns + lease_ms * MILLISECOND_NS, now.wall_ns)


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
    gateway.trusted_epoch = _trusted_epoch(gateway, event.epoch, event.worker)
    gateway.moved_epoch = _moved_epoch(gateway, event.epoch, event.host)
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
