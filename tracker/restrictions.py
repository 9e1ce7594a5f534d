"""Who may not claim, by an operator's word: hosts that are barred, reserved services, frozen gateways.

Rule 1: a restriction is in force from the record that begins it to the record that ends it; that a bar's time
is over is a record, too. Rule 2: it refuses new claims only: whoever holds something keeps it. Rule 3: how
many claims it refuses fills no log: each host's first one is a record. Rule 4: nothing here reads a clock or
does I/O; a bar's end is wall time, because it outlives the tracker.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tracker.events import (
    BarLifted,
    ClaimDenied,
    ClaimsFrozen,
    FreezeEnded,
    HostBarred,
    PortReserved,
    ReservationEnded,
    Restraint,
    Restricting,
)
from tracker.orders import EndFreeze, EndReservation, FreezeClaims, LiftBar, ReservePort


@dataclass(frozen=True, slots=True)
class Scope:
    """Which claims are meant, None meaning all; `host` is the one that is barred.

    At most one restriction has a scope.
    """

    restraint: Restraint
    gateway: str | None
    service: str | None = None
    host: bytes | None = None


@dataclass(slots=True)
class Restriction:
    """`reserved_for`: who may claim all the same; `denied`: whose refusal is recorded, by service."""

    scope: Scope
    reserved_for: bytes | None
    until_ns: int | None
    by: str
    why: str
    since_ns: int
    denied: set[tuple[str, str, bytes]] = field(default_factory=set)

    @property
    def length_ns(self) -> int | None:
        """How long it is to last; None: until it is ended."""
        return None if self.until_ns is None else self.until_ns - self.since_ns


Restrictions = dict[Scope, Restriction]
"""Those in force, in the order in which they began."""


def denying(known: Restrictions, gateway: str, service: str, host: bytes) -> Restriction | None:
    """What keeps the host from claiming the service; None: nothing does."""
    scopes = (
        Scope(Restraint.REVOKED, gateway, service, host),
        Scope(Restraint.FROZEN, None),
        Scope(Restraint.FROZEN, gateway),
        Scope(Restraint.RESERVED, gateway, service),
    )
    found = (known[scope] for scope in scopes if scope in known)
    return next((restriction for restriction in found if restriction.reserved_for != host), None)


def decide(
    known: Restrictions,
    order: LiftBar | ReservePort | EndReservation | FreezeClaims | EndFreeze,
    by: str,
) -> Iterator[Restricting]:
    """What the order leads to: nothing, if it is so already."""
    match order:
        case LiftBar(host, gateway, service, why):
            for scope in known:
                if scope == Scope(
                    Restraint.REVOKED, gateway or scope.gateway, service or scope.service, host
                ):
                    yield BarLifted(str(scope.gateway), str(scope.service), host, by, why)
        case ReservePort(gateway, service, host, why):
            if _reserved_for(known, gateway, service) != host:
                yield from _end_reservation(known, gateway, service, by, why)
                yield PortReserved(gateway, service, host, by, why)
        case EndReservation(gateway, service, why):
            yield from _end_reservation(known, gateway, service, by, why)
        case FreezeClaims(gateway, why):
            if Scope(Restraint.FROZEN, gateway) not in known:
                yield ClaimsFrozen(gateway, by, why)
        case EndFreeze(gateway, why):
            if Scope(Restraint.FROZEN, gateway) in known:
                yield FreezeEnded(gateway, by, why)


def _reserved_for(known: Restrictions, gateway: str, service: str) -> bytes | None:
    found = known.get(Scope(Restraint.RESERVED, gateway, service))
    return None if found is None else found.reserved_for


def _end_reservation(
    known: Restrictions, gateway: str, service: str, by: str, why: str
) -> Iterator[ReservationEnded]:
    host = _reserved_for(known, gateway, service)
    if host is not None:
        yield ReservationEnded(gateway, service, host, by, why)


def over(known: Restrictions, wall_ns: int) -> Iterator[BarLifted]:
    """The ends of the bars whose time is over."""
    for scope, restriction in known.items():
        if restriction.until_ns is not None and restriction.until_ns <= wall_ns and scope.host is not None:
            yield BarLifted(str(scope.gateway), str(scope.service), scope.host, None, restriction.why)


def apply(known: Restrictions, event: Restricting | ClaimDenied, wall_ns: int) -> None:
    """Makes the event so. KeyError: it ends, or speaks of, what is not in force."""
    match event:
        case HostBarred(gateway, service, host, until_ns, by, why):
            _begin(known, Restriction(scope_of(event), None, until_ns, by, why, wall_ns))
        case PortReserved(gateway, service, host, by, why):
            _begin(known, Restriction(scope_of(event), host, None, by, why, wall_ns))
        case ClaimsFrozen(gateway, by, why):
            _begin(known, Restriction(scope_of(event), None, None, by, why, wall_ns))
        case BarLifted() | ReservationEnded() | FreezeEnded():
            del known[scope_of(event)]
        case ClaimDenied(gateway, service, claimant):
            restriction = denying(known, gateway, service, claimant)
            if restriction is None or restriction.scope.restraint is not event.because:
                raise KeyError(f"nothing denies {service!r} to {claimant.hex()}")
            restriction.denied.add((gateway, service, claimant))


def _begin(known: Restrictions, restriction: Restriction) -> None:
    known.pop(restriction.scope, None)  # barred anew, for longer or shorter: the later word counts
    known[restriction.scope] = restriction


def scope_of(event: Restricting) -> Scope:
    """Which restriction the event begins or ends."""
    match event:
        case HostBarred(gateway, service, host) | BarLifted(gateway, service, host):
            return Scope(Restraint.REVOKED, gateway, service, host)
        case PortReserved(gateway, service) | ReservationEnded(gateway, service):
            return Scope(Restraint.RESERVED, gateway, service)
        case ClaimsFrozen(gateway) | FreezeEnded(gateway):
            return Scope(Restraint.FROZEN, gateway)
