"""What an operator may order, and what the tracker answers: shapes, as `messages` sends them.

Rule 1: an order names a binding by its number, and everything else by what it is to be: given twice, it is
carried out once. Rule 2: an order that ends a binding is answered twice: at once, and when the worker's word
is recorded that the kernel has nothing of it any more.
"""

from dataclasses import dataclass
from typing import Annotated

from tracker.events import Ending
from tracker.shapes import Address, Count, Limits, Milliseconds, Name, Nanoseconds, Text

Why = Annotated[str, Limits(1, 256)]
"""The operator's reason; it is logged."""


@dataclass(frozen=True, slots=True)
class ReleaseBinding:
    """End it; whoever sends first has the port, its holder included."""

    binding: Count
    why: Why


@dataclass(frozen=True, slots=True)
class RevokeBinding:
    """End it, and let its holder not claim the service: for `barred_ms`, or until BarLifted (None)."""

    binding: Count
    barred_ms: Milliseconds | None
    why: Why


@dataclass(frozen=True, slots=True)
class LiftBar:
    """Let `host` claim again; `gateway`, `service` None: wherever it is barred."""

    host: Address
    gateway: Name | None
    service: Name | None
    why: Why


@dataclass(frozen=True, slots=True)
class ReservePort:
    """Only `host` may claim the service from now on; whoever holds it keeps it."""

    gateway: Name
    service: Name
    host: Address
    why: Why


@dataclass(frozen=True, slots=True)
class EndReservation:
    gateway: Name
    service: Name
    why: Why


@dataclass(frozen=True, slots=True)
class FreezeClaims:
    """Nobody may claim at the gateway (None: at any); whoever holds something keeps it."""

    gateway: Name | None
    why: Why


@dataclass(frozen=True, slots=True)
class EndFreeze:
    gateway: Name | None
    why: Why


@dataclass(frozen=True, slots=True)
class OrderTaken:
    """It is so from now on, and logged; not `news`: it was so already, and nothing is logged."""

    news: bool


@dataclass(frozen=True, slots=True)
class OrderRefused:
    """It can't be; nothing was changed."""

    reason: Text


@dataclass(frozen=True, slots=True)
class Withdrawing:
    """The order is logged and `worker` told; `Withdrawn` follows.

    `worker` None: the gateway has no session, and the next one begins with this order. `lost`: nothing was
    heard of it for longer than its lease; it hears of the order when it is back.
    """

    binding: Count
    worker: Name | None
    lost: bool


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The binding is over, and the kernel has nothing of it; `ending` None: it was over before."""

    binding: Count
    ending: Ending | None
    withdrawn_ns: Nanoseconds | None


Order = ReleaseBinding | RevokeBinding | LiftBar | ReservePort | EndReservation | FreezeClaims | EndFreeze
"""What only an operator may send."""
OrderReply = OrderTaken | OrderRefused | Withdrawing | Withdrawn
