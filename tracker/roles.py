"""Who may say what to the tracker.

Rule 1: whoever speaks is a Caller, and only the socket or the key he came by says which: nothing that stands
in a frame does. Rule 2: every kind of message has its line in MAY_SAY; what has none nobody may say. Rule 3:
a name that a key has is that key's alone: the log's source names say who spoke. Rule 4: no I/O, no clock.
"""

import enum
from dataclasses import dataclass
from typing import Final

from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    HolderNamed,
    KernelStateRestored,
    OutboxFilled,
    PublicAddressChanged,
    QueueOverflowed,
)
from tracker.feed import GetState, ReadFeed
from tracker.messages import (
    Body,
    ClaimPort,
    CloseSession,
    FindPort,
    GetCheckpoint,
    GetStatus,
    Heartbeat,
    MakeCheckpoint,
    OpenSession,
    Request,
)
from tracker.orders import (
    EndFreeze,
    EndReservation,
    FreezeClaims,
    LiftBar,
    ReleaseBinding,
    ReservePort,
    RevokeBinding,
)


class Role(enum.StrEnum):
    """What a socket or a key is for."""

    WORKER = "worker"
    """Speaks for gateways, under one name."""
    READER = "reader"
    """Asks, and changes nothing."""
    OPERATOR = "operator"
    """Asks, and commands the tracker."""


_WORKERS: Final = frozenset({Role.WORKER})
_READERS: Final = frozenset({Role.READER, Role.OPERATOR})
_OPERATORS: Final = frozenset({Role.OPERATOR})

MAY_SAY: Final[dict[type[Body], frozenset[Role]]] = {
    OpenSession: _WORKERS,
    CloseSession: _WORKERS,
    ClaimPort: _WORKERS,
    BindingInstalled: _WORKERS,
    BindingWithdrawn: _WORKERS,
    HolderNamed: _WORKERS,
    KernelStateRestored: _WORKERS,
    PublicAddressChanged: _WORKERS,
    QueueOverflowed: _WORKERS,
    OutboxFilled: _WORKERS,
    Heartbeat: _WORKERS,
    GetStatus: _READERS,
    GetCheckpoint: _READERS | _WORKERS,
    FindPort: _READERS,
    ReadFeed: _READERS,
    GetState: _READERS,
    MakeCheckpoint: _OPERATORS,
    ReleaseBinding: _OPERATORS,
    RevokeBinding: _OPERATORS,
    LiftBar: _OPERATORS,
    ReservePort: _OPERATORS,
    EndReservation: _OPERATORS,
    FreezeClaims: _OPERATORS,
    EndFreeze: _OPERATORS,
}


class Objection(enum.StrEnum):
    """What is wrong with a request that its caller may not make; its text is the name that is counted."""

    ROLE = "role"
    NAME = "name"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who came by a socket or with a key. `name` is the key's, or that of the local user: `unix:UID`.

    `gateways`: those he may speak for, None for all. `key`: the public key he proved to have, None on a local
    socket; with one, he speaks under `name` alone, without, under any name that is not in `taken`.
    """

    role: Role
    name: str
    gateways: frozenset[str] | None = None
    key: str | None = None
    taken: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Refusal:
    """`reason` is for whoever asked: what is wrong, and what would be right."""

    objection: Objection
    reason: str


def refusal(caller: Caller, request: Request) -> Refusal | None:
    """Why `caller` may not make this request; None: he may."""
    body = request.body
    allowed = MAY_SAY.get(type(body), frozenset())
    if caller.role not in allowed:
        said = type(body).__name__
        return Refusal(
            Objection.ROLE,
            f"{said} is for {' and '.join(sorted(allowed)) or 'nobody'}, {caller.name} is {caller.role}",
        )
    if caller.key is not None and request.worker != caller.name:
        return Refusal(
            Objection.NAME, f"the key of {caller.name} speaks under that name, not as {request.worker}"
        )
    if caller.key is None and caller.role is Role.WORKER and request.worker in caller.taken:
        return Refusal(
            Objection.NAME,
            f"{request.worker} is the name of a key: who has it speaks by tcp, or choose another",
        )
    gateway = getattr(body, "gateway", None)
    if caller.role is Role.WORKER and gateway is not None and not _speaks_for(caller, gateway):
        listed = ", ".join(sorted(caller.gateways or ()))
        return Refusal(
            Objection.GATEWAY, f"{caller.name} speaks for {listed[:100] or 'no gateway'}, not for {gateway}"
        )
    return None


def _speaks_for(caller: Caller, gateway: str) -> bool:
    return caller.gateways is None or gateway in caller.gateways
