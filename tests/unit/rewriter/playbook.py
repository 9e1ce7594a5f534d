"""Words for the gateway's playbooks: events in (`>>`), effects out (`<<`), and the world they are about.

`play >> event << effect`: the event must bring about just the effects that follow it, in their order. `run`
only feeds.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Final, Self

from rewriter import cuseeme
from rewriter.cuseeme import (
    Direction,
    Header,
    Message,
    OpenContinue,
    encode_open_continue,
)
from rewriter.effects import Carried, Effect, KernelView
from rewriter.gateway import Gateway, Settings
from rewriter.packet import Endpoint, Flow, UdpPacket, build_udp, parse
from rewriter.vocabulary import Element, Ports, Service
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    Ending,
    Policy,
    PortRange,
    Resource,
    ServiceDefinition,
    SessionEnding,
    Sharing,
)
from tracker.instant import Instant
from tracker.messages import (
    BindingView,
    ClaimGranted,
    ClaimPort,
    ClaimRefusal,
    ClaimRefused,
    Durable,
    HeartbeatAcknowledged,
    OpenSession,
    ReplyBody,
    SessionDenied,
    SessionGranted,
    SessionOver,
)

SECOND_NS: Final = 1_000_000_000
WALL_NS: Final = 1_700_000_000 * SECOND_NS
START_NS: Final = 5_000 * SECOND_NS
"""Where the monotonic clock stands when a playbook begins."""
IDLE_S: Final = 300.0

ANN = IPv4Address("192.168.1.10")
BOB = IPv4Address("192.168.1.11")
PEER = IPv4Address("198.51.100.7")
OTHER_PEER = IPv4Address("198.51.100.8")
PUBLIC = IPv4Address("203.0.113.1")
NEW_PUBLIC = IPv4Address("203.0.113.2")
MAC = bytes.fromhex("020000000001")

CUSEEME = Service(
    "cuseeme",
    1,
    (Ports("udp", 7648, 7648),),
    (Ports("udp", 7648, 7649), Ports("tcp", 7648, 7649)),
    IDLE_S,
    True,
)
CHAT = Service("chat", 2, (Ports("udp", 9000, 9000),), (Ports("udp", 9000, 9001),), IDLE_S, False)
DEFINITIONS = (
    ServiceDefinition(
        "cuseeme",
        (PortRange(17, 7648, 7648),),
        (PortRange(17, 7648, 7649), PortRange(6, 7648, 7649)),
        Policy.FIRST,
        Sharing.EXCLUSIVE,
        round(IDLE_S * 1000),
        None,
    ),
    ServiceDefinition(
        "chat",
        (PortRange(17, 9000, 9000),),
        (PortRange(17, 9000, 9001),),
        Policy.FIRST,
        Sharing.EXCLUSIVE,
        round(IDLE_S * 1000),
        None,
    ),
)
SETTINGS = Settings("gw", "w1", "host/boot", (CUSEEME, CHAT), DEFINITIONS, claim_timeout_s=1.0)

Event = Callable[[Gateway, Instant], Iterable[Effect]]


def moment(seconds: float) -> Instant:
    """So long after the playbook's beginning."""
    return Instant(WALL_NS + round(seconds * SECOND_NS), START_NS + round(seconds * SECOND_NS))


class Playbook:
    """`>> event << effect << effect`: each effect is compared as it is written down; `settled` at the end."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.now = moment(0)
        self._left: list[Effect] = []
        self._last = "the beginning"

    def at(self, seconds: float) -> Self:
        """It is so much after the beginning, from here on."""
        self.now = moment(seconds)
        return self

    def __rshift__(self, event: Event) -> Self:
        self.settled()
        self._left = list(event(self.gateway, self.now))
        self._last = getattr(event, "__qualname__", repr(event)).split(".")[0]
        return self

    def __lshift__(self, expected: Effect) -> Self:
        assert self._left, f"after {self._last}: nothing came where {expected} was due"
        found = self._left.pop(0)
        assert found == expected, f"after {self._last}: {found} came where {expected} was due"
        return self

    def settled(self) -> Self:
        """No effect is left that nobody wrote down."""
        assert not self._left, f"after {self._last}: {self._left} came too"
        return self

    def run(self, *events: Event) -> Self:
        """The events, whatever they bring about."""
        self.settled()
        for event in events:
            list(event(self.gateway, self.now))
        return self


# --- events -----------------------------------------------------------------------------------------------


def flow(host: IPv4Address, *, port: int = 7648, peer: IPv4Address = PEER, protocol: int = 17) -> Flow:
    return Flow(protocol, Endpoint(host.packed, 7648), Endpoint(peer.packed, port))


def claims(packet: int, host: IPv4Address, *, port: int = 7648, room: bool = True) -> Event:
    return lambda gateway, now: gateway.receive_claim(packet, flow(host, port=port), MAC, now, room=room)


def outbox(*, room: bool, drained: bool) -> Event:
    return lambda gateway, now: gateway.see_outbox(now, room=room, drained=drained)


def talks(packet: int, udp: UdpPacket | None) -> Event:
    return lambda gateway, now: gateway.receive_talk(packet, udp, now)


def answers(request: Durable | None, reply: ReplyBody, *, inherited: bool = False) -> Event:
    return lambda gateway, now: gateway.receive_answer(request, reply, now, inherited=inherited)


def opens(gateway: Gateway, now: Instant) -> Iterable[Effect]:
    return gateway.open_session(now)


def closes(gateway: Gateway, now: Instant) -> Iterable[Effect]:
    del now
    return gateway.close_session()


def timer(gateway: Gateway, now: Instant) -> Iterable[Effect]:
    return gateway.handle_timer(now)


def installed(binding: int) -> Event:
    return lambda gateway, now: gateway.installed(binding, now)


def install_failed(binding: int) -> Event:
    return lambda gateway, now: gateway.install_failed(binding, now)


def withdrawn(binding: int, carried: Carried | None = None) -> Event:
    return lambda gateway, now: gateway.withdrawn(binding, now, carried or Carried())


def adopted(epoch: int, *kept: int, before: int | None = 0) -> Event:
    return lambda gateway, now: gateway.adopted(epoch, kept, now, before=before)


def restored(what: str) -> Event:
    return lambda gateway, now: gateway.restored(what, now)


def peers_seen(binding: int, *live: IPv4Address) -> Event:
    def event(gateway: Gateway, now: Instant) -> Iterable[Effect]:
        del now
        return gateway.peers_seen(binding, live)

    return event


def not_submitted(request: ClaimPort) -> Event:
    def event(gateway: Gateway, now: Instant) -> Iterable[Effect]:
        del now
        return gateway.not_submitted(request)

    return event


def sees(view: KernelView) -> Event:
    return lambda gateway, now: gateway.observe(view, now)


# --- values -----------------------------------------------------------------------------------------------


def element(host: IPv4Address, *, service: str = "cuseeme", public: IPv4Address = PUBLIC) -> Element:
    return Element(service, host, public)


def claim(
    host: IPv4Address, seconds: float = 0, *, epoch: int = 1, public: IPv4Address = PUBLIC, port: int = 7648
) -> ClaimPort:
    """The claim that `claims` leads to at that time."""
    name = "cuseeme" if port == 7648 else "chat"
    observed_ns = moment(seconds).wall_ns
    return ClaimPort(
        "gw",
        epoch,
        public.packed,
        name,
        None,
        host.packed,
        MAC,
        17,
        7648,
        PEER.packed,
        port,
        1000,
        observed_ns,
    )


def view(
    binding: int,
    host: IPv4Address,
    *,
    service: str = "cuseeme",
    public: IPv4Address = PUBLIC,
    since_s: float = 0,
    epoch: int = 1,
) -> BindingView:
    resource = Resource("gw", public.packed, service, None)
    return BindingView(binding, resource, host.packed, MAC, epoch, moment(since_s).wall_ns, None)


def grant(
    binding: int, host: IPv4Address, *, service: str = "cuseeme", public: IPv4Address = PUBLIC
) -> ClaimGranted:
    return ClaimGranted(view(binding, host, service=service, public=public))


def session(
    epoch: int, *bindings: BindingView, trusted_epoch: int = 1, moved_epoch: int = 0
) -> SessionGranted:
    return SessionGranted("gw", epoch, 10_000, moment(0).wall_ns, trusted_epoch, moved_epoch, bindings)


def opening(
    *, public: IPv4Address | None = PUBLIC, take_over: bool = False, fence: bool = False
) -> OpenSession:
    addresses = () if public is None else (public.packed,)
    return OpenSession("gw", addresses, DEFINITIONS, "host/boot", take_over, fence)


def came(binding: int, seconds: float = 0, *, epoch: int = 1) -> BindingInstalled:
    return BindingInstalled("gw", epoch, binding, moment(seconds).wall_ns)


def went(
    binding: int,
    reason: Ending,
    seconds: float = 0,
    *,
    epoch: int = 1,
    last_s: float | None = None,
    packets: int | None = None,
    octets: int | None = None,
    callers: int | None = None,
) -> BindingWithdrawn:
    last_ns = None if last_s is None else moment(last_s).wall_ns
    return BindingWithdrawn(
        "gw", epoch, binding, reason, moment(seconds).wall_ns, last_ns, packets, octets, callers
    )


def kernel(
    *held: Element,
    epoch: int | None = 1,
    left_s: float = IDLE_S,
    public: IPv4Address | None = PUBLIC,
    queueing: bool = True,
    dropped: dict[str, int] | None = None,
) -> KernelView:
    """A kernel that holds just these elements, whole."""
    return KernelView(
        epoch,
        {(one.service, one.holder): left_s for one in held},
        {(one.service, one.public): one.holder for one in held},
        {(one.service, one.holder): one.public for one in held},
        queueing,
        public,
        dropped or {},
    )


def open_continue(
    source: IPv4Address,
    destination: IPv4Address,
    *,
    message: int = Message.OPEN,
    name: str = "",
    ports: tuple[int, int] = (7648, 7648),
    header_address: IPv4Address | None = None,
) -> UdpPacket:
    header = Header(message=message, address=(header_address or source).packed, port=ports[0])
    payload = encode_open_continue(header, OpenContinue(user_name=name))
    raw = build_udp(Endpoint(source.packed, ports[0]), Endpoint(destination.packed, ports[1]), payload)
    udp = parse(raw)
    assert udp is not None
    return udp


def in_session(*held: tuple[int, IPv4Address], settings: Settings = SETTINGS, epoch: int = 1) -> Playbook:
    """A gateway with a session and these bindings of cuseeme in the kernel, seen at the beginning."""
    play = Playbook(Gateway(settings, PUBLIC))
    views = [view(binding, host, since_s=-1000) for binding, host in held]
    play.run(
        opens,
        answers(opening(), session(epoch, *views)),
        adopted(epoch, *(binding for binding, _ in held)),
        sees(kernel(*(element(host) for _, host in held), epoch=epoch)),
        timer,
    )
    return play


def with_left(left_s: float) -> Element:
    return replace(element(ANN), left_s=left_s)


def translated(udp: UdpPacket, direction: Direction, public: Endpoint, private: Endpoint) -> bytes:
    return cuseeme.translate(udp.payload, direction, public, private)


def over(epoch: int = 1, reason: SessionEnding | None = None) -> SessionOver:
    return SessionOver("gw", epoch, reason)


HELD_BY_OTHER = ClaimRefused(ClaimRefusal.HELD, BOB.packed, 9)
DENIED = SessionDenied("gw", "w2", "other/boot", 5_000)
HANG_UP = open_continue(ANN, PEER, message=Message.CLOSE)
DIAL = open_continue(ANN, PEER)
HEARD = answers(None, HeartbeatAcknowledged("gw", 1, 1, 10_000))
