"""An operator who gives orders, and the reference's half of them: is what he says done, and nothing else?

Rule 1: it takes nothing of the code under test but the words of records and messages. Rule 2: an order's
reason is its number, so that the records it leads to can be told.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from tools.simulation.promises import BEFORE, OBEYED
from tools.simulation.wire import Network
from tools.simulation.world import SECOND_NS, World
from tracker.configuration import TrackerSection
from tracker.events import (
    BarLifted,
    ClaimsFrozen,
    Event,
    FreezeEnded,
    HostBarred,
    PortBound,
    PortReserved,
    PortUnbound,
    ReservationEnded,
    WithdrawalOrdered,
)
from tracker.messages import Reply, Request, encode_request
from tracker.orders import (
    EndFreeze,
    EndReservation,
    FreezeClaims,
    LiftBar,
    Order,
    OrderTaken,
    ReleaseBinding,
    ReservePort,
    RevokeBinding,
    Withdrawing,
)
from tracker.roles import Role

DONE_WITHIN_NS: Final = SECOND_NS
"""So soon is a binding over that an operator has ended, where all is well."""
BARRED_MS: Final = 2_500
SERVICE: Final = "cuseeme"
Place = tuple[str | None, str | None, str | None]
"""Gateway, service, host; None: any."""


@dataclass
class Operator:
    """`forbidden`: what the log says that may not be claimed, and by whom it may all the same."""

    world: World
    network: Network
    forbidden: dict[Place, str | None] = field(default_factory=dict)
    ending_ns: dict[int, int] = field(default_factory=dict)
    _orders: int = 0
    _recorded: set[str] = field(default_factory=set)

    # --- what he does ------------------------------------------------------------------------------------

    def order(self, what: str, gateway: str, host: str, binding: int | None) -> None:
        """Give an order, if a tracker is there to take it."""
        address, why = IPv4Address(host).packed, str(self._orders + 1)
        match what:
            case "release" if binding is not None:
                self._say(ReleaseBinding(binding, why))
            case "revoke" if binding is not None:
                self._say(RevokeBinding(binding, BARRED_MS, why))
            case "bar" if binding is not None:
                self._say(RevokeBinding(binding, None, why))
            case "lift":
                self._say(LiftBar(address, None, None, why))
            case "reserve":
                self._say(ReservePort(gateway, SERVICE, address, why))
            case "freeze":
                self._say(FreezeClaims(gateway, why))
            case "freeze all":
                self._say(FreezeClaims(None, why))
            case _:
                pass  # nobody holds what he would end

    def allow_all(self) -> None:
        """Take everything back that he has forbidden."""
        for gateway, service, host in list(self.forbidden):
            why = str(self._orders + 1)
            if service is None:
                self._say(EndFreeze(gateway, why))
            elif host is not None:
                self._say(LiftBar(IPv4Address(host).packed, gateway, service, why))
            elif gateway is not None:
                self._say(EndReservation(gateway, service, why))

    def _say(self, order: Order) -> None:
        self._orders += 1
        self.world.tell("operator", "orders", order)
        server = self.network.servers.get(TrackerSection().local_socket(Role.OPERATOR).endpoint)
        if server is not None:
            frame = encode_request(Request("operator", self._orders, 0, 0, 0, self.world.now_ns, order))
            server.inbox.append((b"operator", frame))
            server.process.notify()

    # --- what comes of it --------------------------------------------------------------------------------

    def recorded(self, event: Event) -> None:
        """A record is on the disk."""
        match event:
            case WithdrawalOrdered(binding):
                self.ending_ns.setdefault(binding, self.world.now_ns)
                self._recorded.add(event.why)
            case HostBarred(gateway, service, host):
                self._forbid((gateway, service, str(IPv4Address(host))), None, event.why)
            case PortReserved(gateway, service, host):
                self._forbid((gateway, service, None), str(IPv4Address(host)), event.why)
            case ClaimsFrozen(gateway):
                self._forbid((gateway, None, None), None, event.why)
            case BarLifted(gateway, service, host):
                self._allow((gateway, service, str(IPv4Address(host))), event.why)
            case ReservationEnded(gateway, service):
                self._allow((gateway, service, None), event.why)
            case FreezeEnded(gateway):
                self._allow((gateway, None, None), event.why)
            case PortBound():
                self._bound(event)
            case PortUnbound(binding):
                self.ending_ns.pop(binding, None)
            case _:
                pass

    def _forbid(self, place: Place, but: str | None, why: str) -> None:
        self.forbidden[place] = but
        self._recorded.add(why)

    def _allow(self, place: Place, why: str) -> None:
        if self.forbidden.pop(place, place) == place:
            self.world.fail(OBEYED, f"{place} is allowed, and was not forbidden")
        self._recorded.add(why)

    def _bound(self, event: PortBound) -> None:
        gateway, service = event.resource.gateway, event.resource.service
        host = str(IPv4Address(event.holder))
        places = ((gateway, service, host), (gateway, service, None), (gateway, None, None), (None,) * 3)
        for place in places:
            if place in self.forbidden and self.forbidden[place] != host:
                self.world.fail(OBEYED, f"{event}, and that is forbidden: {place}")

    def sent(self, reply: Reply) -> None:
        """The tracker answers."""
        match reply.body:
            case OrderTaken(news=True) if str(reply.incarnation) not in self._recorded:
                self.world.fail(BEFORE, f"{reply}")
            case Withdrawing(binding) if binding not in self.ending_ns:
                self.world.fail(BEFORE, f"{reply}")
            case _:
                pass

    def look(self, binding: int, well_since_ns: int | None) -> None:
        """A binding is still there: since when was it to be over, and could it be?"""
        ordered_ns = self.ending_ns.get(binding)
        if ordered_ns is None or well_since_ns is None:
            return
        late_ns = self.world.now_ns - max(ordered_ns, well_since_ns)
        if late_ns > DONE_WITHIN_NS + SECOND_NS // 2:
            self.world.fail(OBEYED, f"binding {binding} was to be over {late_ns / SECOND_NS:.3f} s ago")
