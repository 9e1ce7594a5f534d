"""What the gateway's machine wants done, and how it is shown the kernel: plain values, nothing else.

Rule 1: an effect whose docstring asks for an answer gets it before any other input, and always gets it.
Rule 2: the others have no outcome: they are carried out, or the worker ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address

from rewriter.vocabulary import Element, Key, element_of
from tracker.events import Ending
from tracker.messages import Durable, Volatile


class Action(Enum):
    """What becomes of a queued packet. REFUSE: the kernel answers as configured (ICMP, drop, pass)."""

    ACCEPT = "accept"
    DROP = "drop"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Verdict:
    packet: int
    action: Action
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class Submit:
    """Into the outbox; a claim that finds no room there is answered with `not_submitted`."""

    message: Durable


@dataclass(frozen=True, slots=True)
class Send:
    message: Volatile


@dataclass(frozen=True, slots=True)
class Install:
    """Answer with `installed` or `install_failed`."""

    binding: int
    element: Element


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Remove the elements, drop what the queues hold, delete connections; answer with `withdrawn`."""

    binding: int
    element: Element
    reason: Ending


@dataclass(frozen=True, slots=True)
class Carried:
    """What went through the kernel for a binding, and how many connections were opened to it from outside.

    None: nobody knows.
    """

    packets: int | None = None
    octets: int | None = None
    callers: int | None = None


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete the connections of a host that holds no longer."""

    element: Element


@dataclass(frozen=True, slots=True)
class RemoveStray:
    """The kernel holds this and no binding says so."""

    service: str
    holder: Key | None
    public: Key | None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer this host from the kernel for a while."""

    service: str
    host: Key


@dataclass(frozen=True, slots=True)
class Settle:
    """Let this host claim again at once."""

    service: str
    host: Key


@dataclass(frozen=True, slots=True)
class CheckPeers:
    """Find out which peers of the binding are live; answer with `peers_seen`."""

    binding: int
    element: Element


@dataclass(frozen=True, slots=True)
class Adopt:
    """Make the table this epoch's, keeping of `bindings` what the kernel holds; answer with `adopted`.

    In a kernel whose table is older than `moved_epoch` all of them are made anew: their calls were another's.
    No packet of the older epoch's queues is waiting for a verdict then.
    """

    epoch: int
    bindings: tuple[tuple[int, Element], ...]
    moved_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """Before heartbeat `nonce`: let its acknowledgement become a lease, for a while."""

    nonce: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Heartbeat `nonce` was acknowledged: the kernel takes it for a lease, unless it came too late."""

    nonce: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class EndLease:
    """The kernel forwards nothing any more, whatever acknowledgement still comes."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Somebody removed our table, queue rules, routing or `elements`: bring that back.

    Answer with `restored`.
    """

    what: str
    elements: tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """This worker must not go on."""

    reason: str


Effect = (
    Verdict
    | Submit
    | Send
    | Install
    | Withdraw
    | Purge
    | RemoveStray
    | Refuse
    | Settle
    | CheckPeers
    | Adopt
    | Offer
    | Renew
    | EndLease
    | Restore
    | Stop
)


@dataclass(frozen=True, slots=True)
class KernelView:
    """What the kernel was seen to hold.

    `holders`: (service, host) → seconds of the idle time left; `inbound` and `outbound`: (service, key)
    → value. `epoch` None: no table. `queueing`: the queue rules are in place. `routed`: the public address is
    routed to the host that carries it itself, if there is one. `dropped`: packets lost so far, by queue.
    """

    epoch: int | None
    holders: dict[tuple[str, Key], float]
    inbound: dict[tuple[str, Key], IPv4Address]
    outbound: dict[tuple[str, Key], IPv4Address]
    queueing: bool = True
    public: IPv4Address | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    routed: bool = True

    def elements(self) -> Iterator[Element]:
        """What it holds, whoever put it there."""
        for (service, holder), left_s in self.holders.items():
            public = self.outbound.get((service, holder))
            if public is not None:
                yield element_of(service, holder, public, left_s)
