"""Who owns a port: `decide` says what a command leads to, `transitions.apply` makes it so.

Rule 1: every decision is a function of state, command and now, made here, in `sessions`, in `claims` and in
`restrictions`; the log keeps its events, and replay only applies them. Rule 2: nothing there reads a clock or
does I/O; now is an argument. Rule 3: a resource is free, or one binding holds it; it becomes free only when a
worker said that the kernel has nothing of it any more. Rule 4: what a worker saw of an open binding is taken,
also with an older epoch, unless another worker has taken over since. Rule 5: what is not logged decides
nothing that is, except that a lease ran out. Rule 6: an operator's order to end a binding stands until it is
over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import assert_never

from eventlog.record import CLOCK_TOLERANCE_NS, clock_went_back
from tracker import claims, restrictions, sessions
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    ClockStepped,
    Ending,
    Event,
    HolderNamed,
    HostBarred,
    KernelStateRestored,
    KeyChanged,
    OutboxFilled,
    Policy,
    PortUnbound,
    PublicAddressChanged,
    QueueOverflowed,
    RefusalsEnded,
    Restraint,
    ServiceDefinition,
    TrackerStarted,
    TrackerStopped,
    WithdrawalOrdered,
)
from tracker.instant import Instant
from tracker.messages import (
    Acknowledged,
    ClaimPort,
    CloseSession,
    Durable,
    Heartbeat,
    OpenSession,
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
from tracker.restrictions import Scope
from tracker.transitions import MILLISECOND_NS, ClockSeen, Decision, LeaseRenewed, State

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


# ---- decide ----------------------------------------------------------------------------------------------


def decide(state: State, command: Command, now: Instant) -> Decision:
    """What `command` leads to at `now`; changes nothing."""
    stepped, seen = _look_at_clock(state, now)
    decision = _decide(state, command, now)
    return replace(decision, events=(*stepped, *decision.events), unlogged=(*seen, *decision.unlogged))


def next_deadline(state: State) -> int | None:
    """When PassTime has something to do, by the monotonic clock; None: never, as things stand."""
    leases = (session.deadline_ns for _, session in sessions.leases(state))
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
            return Decision((*sessions.lost_workers(state, now), *lifted))
        case WasAway(away_ns):
            later = (
                LeaseRenewed(name, session.deadline_ns + away_ns, session.heard_ns)
                for name, session in sessions.leases(state)
            )
            return Decision(unlogged=tuple(later))
        case _:
            assert_never(command)


def _from_worker(state: State, command: FromWorker, now: Instant) -> Decision:
    worker = command.worker
    match command.body:
        case OpenSession() as body:
            return sessions.open_session(state, worker, body, command.age_ms, now)
        case CloseSession() as body:
            return sessions.close_session(state, worker, body)
        case ClaimPort() as body:
            return claims.claim(state, worker, body, command.age_ms, now)
        case Heartbeat() as body:
            return sessions.heartbeat(state, worker, body, now)
        case BindingInstalled() | BindingWithdrawn() | HolderNamed() as body:
            return Decision(tuple(_report(state, worker, body)), reply=Acknowledged())
        case KernelStateRestored() | PublicAddressChanged() | QueueOverflowed() | OutboxFilled() as body:
            return Decision(tuple(_fact(state, worker, body)), reply=Acknowledged())
        case _:
            assert_never(command.body)


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
        for name, session in sessions.leases(state)
    )
    return Decision((started,) if command.key_change is None else (command.key_change, started), leases)
