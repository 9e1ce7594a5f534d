"""Who speaks for a gateway: sessions, their epochs and their leases, as `ownership.decide` has them decided.

Rule 1: an epoch is given once, to one worker; what an older one commands is refused. Rule 2: a lease is never
cut short because the tracker did not listen. Rule 3: the kernel of a fenced session may forward until its
lease has ended, and no batch from another host stops it: so whoever comes from there waits until then.
Rule 4: with each session and heartbeat a worker is told which bindings an operator has ended.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from tracker import transitions
from tracker.events import (
    Event,
    ServiceDefined,
    ServiceRemoved,
    SessionEnded,
    SessionEnding,
    SessionOpened,
    SessionRefused,
    WorkerLost,
    WorkerReturned,
)
from tracker.instant import Instant
from tracker.messages import (
    Acknowledged,
    CloseSession,
    Heartbeat,
    HeartbeatAcknowledged,
    OpenSession,
    SessionDenied,
    SessionGranted,
    SessionOver,
    WithdrawBinding,
)
from tracker.transitions import MILLISECOND_NS, Decision, Gateway, LeaseRenewed, Session, State, TakerSeen

TAKER_HEARD_NS: Final = 5_000_000_000
"""Who wants to take over asks anew at least each two seconds (rewriter/gateway.py); so long it is heeded."""


def open_session(state: State, worker: str, body: OpenSession, age_ms: int, now: Instant) -> Decision:
    """The worker gets the gateway with a new epoch, or hears who has it and for how long."""
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
    since = (
        transitions.trusted_epoch(gateway, epoch, worker),
        transitions.moved_epoch(gateway, epoch, body.host),
    )
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


def close_session(state: State, worker: str, body: CloseSession) -> Decision:
    """The gateway is free at once; its bindings stay."""
    if session_of(state, worker, body.gateway, body.epoch) is None:
        return Decision(reply=Acknowledged())
    ended = SessionEnded(body.gateway, body.epoch, worker, SessionEnding.CLOSED)
    return Decision((ended,), reply=Acknowledged())


def heartbeat(state: State, worker: str, body: Heartbeat, now: Instant) -> Decision:
    """The lease begins anew, and a worker that was lost is back; or the session is over."""
    session = session_of(state, worker, body.gateway, body.epoch)
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


def _withdrawals(state: State, gateway: str, worker: str) -> Iterator[tuple[str, WithdrawBinding]]:
    """What the gateway's worker has been ordered to end, and has not yet."""
    for number in sorted(state.gateways[gateway].bindings if gateway in state.gateways else ()):
        ordered = state.bindings[number].ordered
        if ordered is not None:
            yield worker, WithdrawBinding(gateway, number, ordered)


def session_of(state: State, worker: str, gateway: str, epoch: int) -> Session | None:
    """The gateway's session, if it is this worker's and of this epoch."""
    found = state.gateways.get(gateway)
    if found is None or found.session is None:
        return None
    session = found.session
    return session if session.worker == worker and session.epoch == epoch else None


def leases(state: State) -> Iterator[tuple[str, Session]]:
    """The sessions whose workers are not lost, by gateway."""
    for name, gateway in state.gateways.items():
        if gateway.session is not None and gateway.session.lost_since_ns is None:
            yield name, gateway.session


def lost_workers(state: State, now: Instant) -> Iterator[WorkerLost]:
    """Those whose leases have run out by now."""
    for name, session in leases(state):
        if session.deadline_ns <= now.monotonic_ns:
            yield WorkerLost(name, session.epoch, session.worker, session.heard_ns)


def _renewed(gateway: str, lease_ms: int, now: Instant) -> LeaseRenewed:
    return LeaseRenewed(gateway, now.monotonic_ns + lease_ms * MILLISECOND_NS, now.wall_ns)
