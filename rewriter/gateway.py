"""The gateway's worker as a machine: upcalls, answers, observations and time in; effects out.

Rule 1: nothing here decides who holds a port. The tracker does; this carries it out and reports.
Rule 2: no I/O and no clock; `now` is an argument. The loop in `service.py` carries effects out in their order
  and hands the outcome back (`installed`, `withdrawn`, …), so that a simulator can stand in for it.
Rule 3: the log's interval contains the kernel's: installed only after the grant, reported as withdrawn only
  after the kernel has let go.
Rule 4: every queued packet gets exactly one verdict, whatever happens to its claim.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address

from rewriter import cuseeme
from rewriter.cuseeme import Direction
from rewriter.packet import Endpoint, Flow, UdpPacket
from rewriter.ruleset import Element, Service
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    Ending,
    HolderNamed,
    KernelStateRestored,
    PublicAddressChanged,
    QueueOverflowed,
    ServiceDefinition,
)
from tracker.instant import Instant
from tracker.messages import (
    Acknowledged,
    BindingView,
    ClaimGranted,
    ClaimPort,
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
    Volatile,
    WithdrawBinding,
)

SECOND_NS = 1_000_000_000
TICK_NS = SECOND_NS
TRACKER_SILENT_NS = 3 * SECOND_NS
"""So long without any answer, and claims are refused at once instead of after their own time-out."""
HANG_UP_LINGER_NS = 30_000_000
"""Hang-ups come twice or three times within a millisecond (seen in captures); all of them should still leave."""
PURGE_AGAIN_NS = SECOND_NS
"""A packet that sat in a queue can bring a deleted connection back: connections are deleted a second time."""
REOPEN_NS = 2 * SECOND_NS


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
class Purge:
    """Delete the connections of a host that holds no longer."""

    element: Element


@dataclass(frozen=True, slots=True)
class RemoveStray:
    """The kernel holds this and no binding says so."""

    service: str
    holder: IPv4Address | None
    public: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer this host from the kernel for a while."""

    service: str
    host: IPv4Address


@dataclass(frozen=True, slots=True)
class Settle:
    """Let this host claim again at once."""

    service: str
    host: IPv4Address


@dataclass(frozen=True, slots=True)
class CheckPeers:
    """Find out which peers of the binding are live; answer with `peers_seen`."""

    binding: int
    element: Element


@dataclass(frozen=True, slots=True)
class Adopt:
    """Replace the table by this epoch's, keeping of `bindings` what the kernel holds; answer with `adopted`."""

    epoch: int
    bindings: tuple[tuple[int, Element], ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """Somebody flushed our table or our queue rules: bring them back; answer with `restored`."""

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
    | Restore
    | Stop
)


@dataclass(frozen=True, slots=True)
class KernelView:
    """What the kernel was seen to hold. `holders`: (service, host) → idle seconds left; `inbound` and
    `outbound`: (service, key) → value. `epoch` None: no table. `queueing`: the queue rules are in place."""

    epoch: int | None
    holders: dict[tuple[str, IPv4Address], float]
    inbound: dict[tuple[str, IPv4Address], IPv4Address]
    outbound: dict[tuple[str, IPv4Address], IPv4Address]
    queueing: bool = True
    public: IPv4Address | None = None
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    gateway: str
    host: str
    services: tuple[Service, ...]
    definitions: tuple[ServiceDefinition, ...]
    claim_timeout_s: float
    take_over: bool = False


@dataclass(slots=True)
class Held:
    """A binding this worker carries out."""

    binding: int
    element: Element
    user_name: str | None
    hung_up: set[IPv4Address] = field(default_factory=set)
    left_s: float | None = None
    last_packet_ns: int | None = None
    installed: bool = False
    withdrawing: Ending | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A claim on its way to the tracker; `packet` None once its packet was given up."""

    request: ClaimPort
    packet: int | None
    deadline_ns: int


class Gateway:
    """One worker's knowledge of its gateway."""

    def __init__(self, settings: Settings, public: IPv4Address | None) -> None:
        self.settings = settings
        self.public = public
        self.epoch: int | None = None
        self.counters: dict[str, int] = {}
        self._held: dict[int, Held] = {}
        self._waiting: dict[tuple[str, IPv4Address], Waiting] = {}
        self._granted_for: dict[int, int | None] = {}  # binding → the packet that waits for its installation
        self._hang_ups: dict[int, int] = {}  # binding → when its peers are looked at
        self._ended: deque[int] = deque(maxlen=1024)
        self._purges: list[tuple[int, Element]] = []
        self._opening_since_ns: int | None = None
        self._last_answer_ns: int | None = None
        self._next_tick_ns = 0
        self._nonce = 0
        self._seen_good_ns: int | None = None  # wall time when the kernel was last as it should be
        self._dropped: dict[str, int] = {}

    # --- what is known ---------------------------------------------------------------------------------

    def elements(self) -> tuple[Element, ...]:
        """What the kernel should hold, with the idle time as last seen."""
        return tuple(
            Element(held.element.service, held.element.holder, held.element.public, held.left_s)
            for held in self._held.values()
            if held.installed and held.withdrawing is None
        )

    def binding_of(self, service: str, holder: IPv4Address) -> Held | None:
        """The binding of `service` that `holder` has now."""
        for held in self._held.values():
            if held.element.service == service and held.element.holder == holder and held.withdrawing is None:
                return held
        return None

    def next_deadline_ns(self) -> int:
        """When `handle_timer` wants to be called, on the monotonic clock."""
        deadlines = [self._next_tick_ns, *self._hang_ups.values(), *(at for at, _ in self._purges)]
        deadlines += [waiting.deadline_ns for waiting in self._waiting.values() if waiting.packet is not None]
        return min(deadlines)

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1

    def _service_of(self, flow: Flow) -> Service | None:
        protocol = {17: "udp", 6: "tcp"}.get(flow.protocol)
        for service in self.settings.services:
            for ports in service.control:
                if ports.protocol == protocol and ports.first <= flow.destination.port <= ports.last:
                    return service
        return None

    # --- upcalls ---------------------------------------------------------------------------------------

    def receive_claim(
        self, packet: int, flow: Flow | None, mac: bytes | None, now: Instant, *, room: bool = True
    ) -> Iterator[Effect]:
        """A packet to a control port from a host that holds nothing; `room`: the outbox can take a claim."""
        service = None if flow is None else self._service_of(flow)
        if flow is None or service is None:
            # The fence after the queue still keeps it from leaving as a holder's packet.
            self._count("claims_unparsed")
            yield Verdict(packet, Action.ACCEPT)
            return
        host = IPv4Address(flow.source.address)
        if self.binding_of(service.name, host) is not None:
            self._count("claims_by_holder")
            yield Settle(service.name, host)
            yield Verdict(packet, Action.ACCEPT)
            return
        waiting = self._waiting.get((service.name, host))
        if waiting is not None and waiting.packet is not None:
            yield Verdict(packet, Action.DROP)
            return
        self._count("claims")
        if self.epoch is None or self.public is None or not room or self._tracker_silent(now):
            self._count("claims_without_tracker")
            yield Refuse(service.name, host)
            yield Verdict(packet, Action.REFUSE)
            return
        request = ClaimPort(
            gateway=self.settings.gateway,
            epoch=self.epoch,
            public_address=self.public.packed,
            service=service.name,
            peer=None,
            holder=host.packed,
            mac=mac,
            protocol=flow.protocol,
            source_port=flow.source.port,
            destination=flow.destination.address,
            destination_port=flow.destination.port,
            claim_timeout_ms=round(self.settings.claim_timeout_s * 1000),
            observed_ns=now.wall_ns,
        )
        deadline_ns = now.monotonic_ns + round(self.settings.claim_timeout_s * SECOND_NS)
        self._waiting[service.name, host] = Waiting(request, packet, deadline_ns)
        yield Submit(request)

    def receive_talk(self, packet: int, udp: UdpPacket | None, now: Instant) -> Iterator[Effect]:
        """An OpenContinue of a service connection, after destination NAT and before source NAT."""
        if udp is None:
            self._count("talks_unparsed")
            yield Verdict(packet, Action.ACCEPT)
            return
        source, destination = IPv4Address(udp.source.address), IPv4Address(udp.destination.address)
        for held in self._held.values():
            if held.withdrawing is not None:
                continue
            public = held.element.public.packed
            if held.element.holder == source:
                direction, ours = Direction.OUT, udp.source
            elif held.element.holder == destination:
                direction, ours = Direction.IN, udp.destination
            else:
                continue
            # Ports are kept (the NAT chain sees to it), so the public port is the private one.
            payload = cuseeme.translate(udp.payload, direction, Endpoint(public, ours.port), ours)
            yield Verdict(packet, Action.ACCEPT, payload)
            if direction is Direction.OUT:
                yield from self._learn(held, udp, destination, now)
            return
        self._count("talks_after_unbinding")
        yield Verdict(packet, Action.DROP)

    def _learn(self, held: Held, udp: UdpPacket, peer: IPv4Address, now: Instant) -> Iterator[Effect]:
        talk = cuseeme.parse(udp.payload)
        if talk is None:
            return
        if talk.is_hang_up:
            held.hung_up.add(peer)
            self._hang_ups.setdefault(held.binding, now.monotonic_ns + HANG_UP_LINGER_NS)
        elif talk.is_new_call and peer in held.hung_up:
            held.hung_up.discard(peer)
            self._hang_ups.pop(held.binding, None)
        name = talk.user_name
        if name and name != held.user_name and self.epoch is not None:
            held.user_name = name
            yield Submit(HolderNamed(self.settings.gateway, self.epoch, held.binding, name))

    # --- answers ---------------------------------------------------------------------------------------

    def receive_answer(
        self, request: Durable | None, reply: ReplyBody, now: Instant, *, inherited: bool = False
    ) -> Iterator[Effect]:
        """What the tracker says; `inherited`: in answer to a process before this one."""
        self._last_answer_ns = now.monotonic_ns
        match reply:
            case SessionGranted():
                if not inherited:
                    yield from self._session_granted(reply)
            case SessionDenied():
                self._opening_since_ns = now.monotonic_ns
                self._count("sessions_denied")
                if self.epoch is not None:
                    yield Stop(f"gateway {reply.gateway} is {reply.worker}'s on {reply.host}")
            case SessionOver():
                if reply.epoch == self.epoch and self._opening_since_ns is None:
                    yield from self._open(now)
            case ClaimGranted():
                # One for a process before us is in the bindings of our own session.
                if not inherited and isinstance(request, ClaimPort):
                    yield from self._granted(request, reply.binding, now)
            case ClaimRefused():
                if not inherited and isinstance(request, ClaimPort):
                    yield from self._refused(request)
            case WithdrawBinding():
                held = self._held.get(reply.binding)
                if held is not None:
                    yield from self._withdraw(held, reply.reason)
            case HeartbeatAcknowledged() | Acknowledged():
                pass
            case _:
                self._count("answers_unexpected")

    def _session_granted(self, reply: SessionGranted) -> Iterator[Effect]:
        self._opening_since_ns = None
        bindings: list[tuple[int, Element]] = []
        for view in reply.bindings:
            element = element_of(view)
            bindings.append((view.binding, element))
            held = self._held.get(view.binding)
            if held is None:
                self._held[view.binding] = Held(view.binding, element, view.user_name)
        known = {binding for binding, _ in bindings}
        for binding in [binding for binding in self._held if binding not in known]:
            del self._held[binding]  # ended in the tracker; the kernel loses it with the new table
        yield Adopt(reply.epoch, tuple(bindings))

    def _granted(self, request: ClaimPort, view: BindingView, now: Instant) -> Iterator[Effect]:
        # By host, not by request: a grant of an earlier claim serves the packet that waits now.
        waiting = self._waiting.pop((request.service, IPv4Address(request.holder)), None)
        packet = None if waiting is None else waiting.packet
        if view.binding in self._held:
            if packet is not None:
                yield Verdict(packet, Action.ACCEPT)
            return
        if view.binding in self._ended:
            # Its end is on the way to the tracker; installing it again would make a holder without a record.
            if packet is not None:
                yield Verdict(packet, Action.REFUSE)
            return
        held = Held(view.binding, element_of(view), view.user_name)
        self._held[view.binding] = held
        if waiting is None or view.resource.public_address != (self.public.packed if self.public else None):
            # Nobody waits for it any more: say so at once, or the port would be lost to all until idle.
            self._count("grants_late")
            if packet is not None:
                yield Verdict(packet, Action.REFUSE)
            yield from self._withdraw(held, Ending.LATE)
            return
        self._granted_for[view.binding] = packet
        yield Install(view.binding, held.element)

    def _refused(self, request: ClaimPort) -> Iterator[Effect]:
        key = (request.service, IPv4Address(request.holder))
        waiting = self._waiting.get(key)
        if waiting is None or waiting.request != request:
            return
        del self._waiting[key]
        self._count("claims_refused")
        yield Refuse(*key)
        if waiting.packet is not None:
            yield Verdict(waiting.packet, Action.REFUSE)

    # --- outcomes --------------------------------------------------------------------------------------

    def installed(self, binding: int, now: Instant) -> Iterator[Effect]:
        """The kernel has it: only now may the packet that asked go on."""
        held = self._held[binding]
        held.installed = True
        packet = self._granted_for.pop(binding, None)
        if packet is not None:
            yield Verdict(packet, Action.ACCEPT)
        if self.epoch is not None:
            yield Submit(BindingInstalled(self.settings.gateway, self.epoch, binding, now.wall_ns))

    def install_failed(self, binding: int, now: Instant) -> Iterator[Effect]:
        """The kernel would not: the port goes back, and the packet is refused."""
        self._count("installs_failed")
        held = self._held[binding]
        packet = self._granted_for.pop(binding, None)
        if packet is not None:
            yield Verdict(packet, Action.REFUSE)
        yield from self._withdraw(held, Ending.LOST)

    def withdrawn(
        self, binding: int, now: Instant, *, packets: int | None = None, octets: int | None = None
    ) -> Iterator[Effect]:
        """The kernel has let go: now the tracker may hear of it."""
        held = self._held.pop(binding)
        self._ended.append(binding)
        self._hang_ups.pop(binding, None)
        packet = self._granted_for.pop(binding, None)
        if packet is not None:
            yield Verdict(packet, Action.REFUSE)
        self._purges.append((now.monotonic_ns + PURGE_AGAIN_NS, held.element))
        if self.epoch is not None and held.withdrawing is not None:
            yield Submit(self._withdrawn_report(held, held.withdrawing, now, packets, octets))

    def _withdrawn_report(
        self, held: Held, reason: Ending, now: Instant, packets: int | None = None, octets: int | None = None
    ) -> BindingWithdrawn:
        return BindingWithdrawn(
            gateway=self.settings.gateway,
            epoch=self.epoch or 0,
            binding=held.binding,
            reason=reason,
            withdrawn_ns=now.wall_ns,
            last_packet_ns=held.last_packet_ns,
            packets=packets,
            octets=octets,
        )

    def adopted(
        self, epoch: int, kept: Iterable[int], now: Instant, *, had_table: bool
    ) -> Iterator[Effect]:
        """The table is this epoch's, and holds the bindings `kept`; the others are gone from the kernel."""
        self.epoch = epoch
        self._seen_good_ns = now.wall_ns
        keeping = set(kept)
        for held in list(self._held.values()):
            if held.binding in keeping:
                held.installed = True
                continue
            del self._held[held.binding]
            # With a table it ran out there while nobody looked; without one the kernel started anew.
            reason = held.withdrawing or (Ending.IDLE if had_table else Ending.LOST)
            yield Submit(self._withdrawn_report(held, reason, now))
        for held in list(self._held.values()):
            if held.element.public != self.public:
                yield from self._withdraw(held, Ending.ADDRESS_CHANGED)

    def restored(self, what: str, now: Instant) -> Iterator[Effect]:
        """The kernel is as it should be again: the hole goes into the log."""
        since_ns = self._seen_good_ns if self._seen_good_ns is not None else now.wall_ns
        self._seen_good_ns = now.wall_ns
        if self.epoch is not None:
            yield Submit(
                KernelStateRestored(
                    self.settings.gateway, self.epoch, what, min(since_ns, now.wall_ns), now.wall_ns
                )
            )

    def peers_seen(self, binding: int, live: Iterable[IPv4Address]) -> Iterator[Effect]:
        """After a hang-up: unbind unless another peer is in conversation."""
        held = self._held.get(binding)
        if held is not None and held.hung_up and not set(live) - held.hung_up:
            yield from self._withdraw(held, Ending.HANG_UP)

    def _withdraw(self, held: Held, reason: Ending) -> Iterator[Effect]:
        if held.withdrawing is None:
            held.withdrawing = reason
            yield Withdraw(held.binding, held.element, reason)

    # --- the kernel as seen, and time --------------------------------------------------------------------

    def observe(self, kernel: KernelView, now: Instant) -> Iterator[Effect]:
        """Compare what the kernel holds with what it should."""
        if kernel.public != self.public:
            yield from self._address_changed(kernel.public, now)
        if self.epoch is None:
            return
        if kernel.epoch is None:
            yield Restore("table", self.elements())
            return
        if kernel.epoch != self.epoch:
            yield Stop(f"the kernel's table is of epoch {kernel.epoch}, ours is {self.epoch}: taken over")
            return
        if not kernel.queueing:
            yield Restore("queue rules", self.elements())
        yield from self._overflows(kernel, now)
        yield from self._compare(kernel, now)
        if kernel.queueing:
            self._seen_good_ns = now.wall_ns

    def _compare(self, kernel: KernelView, now: Instant) -> Iterator[Effect]:
        expected: set[tuple[str, IPv4Address]] = set()
        for held in list(self._held.values()):
            key = (held.element.service, held.element.holder)
            if not held.installed or held.withdrawing is not None:
                expected.add(key)
                continue
            left_s = kernel.holders.get(key)
            if left_s is None:
                if held.left_s is not None and held.last_packet_ns is None:
                    held.last_packet_ns = now.wall_ns
                yield from self._withdraw(held, Ending.IDLE)
                continue
            expected.add(key)
            held.left_s = left_s
            idle_s = self._idle_s(held.element.service)
            held.last_packet_ns = now.wall_ns - round((idle_s - left_s) * SECOND_NS)
            if (held.element.service, held.element.public) not in kernel.inbound:
                yield Restore("elements", self.elements())
        publics = {(held.element.service, held.element.public) for held in self._held.values()}
        for service, holder in kernel.holders.keys() - expected:
            yield RemoveStray(service, holder, None)
        for service, public in kernel.inbound.keys() - publics:
            yield RemoveStray(service, None, public)

    def _idle_s(self, name: str) -> float:
        return next(service.idle_s for service in self.settings.services if service.name == name)

    def _overflows(self, kernel: KernelView, now: Instant) -> Iterator[Effect]:
        for queue, dropped in kernel.dropped.items():
            more = dropped - self._dropped.get(queue, 0)
            self._dropped[queue] = dropped
            if more > 0 and self.epoch is not None:
                yield Submit(
                    QueueOverflowed(self.settings.gateway, self.epoch, queue, more, now.wall_ns)
                )

    def _address_changed(self, public: IPv4Address | None, now: Instant) -> Iterator[Effect]:
        old, self.public = self.public, public
        for held in list(self._held.values()):
            if held.element.public != public:
                yield from self._withdraw(held, Ending.ADDRESS_CHANGED)
        if self.epoch is not None:
            yield Submit(
                PublicAddressChanged(
                    self.settings.gateway,
                    self.epoch,
                    None if old is None else old.packed,
                    None if public is None else public.packed,
                    now.wall_ns,
                )
            )

    def open_session(self, now: Instant) -> Iterator[Effect]:
        """Ask for the gateway; to be called once, at the start."""
        yield from self._open(now)

    def _open(self, now: Instant) -> Iterator[Effect]:
        self._opening_since_ns = now.monotonic_ns
        yield Submit(
            OpenSession(
                gateway=self.settings.gateway,
                public_addresses=() if self.public is None else (self.public.packed,),
                services=self.settings.definitions,
                host=self.settings.host,
                take_over=self.settings.take_over,
            )
        )

    def close_session(self) -> Iterator[Effect]:
        """A clean stop: calls go on in the kernel, and another worker may come at once."""
        for waiting in self._waiting.values():
            if waiting.packet is not None:
                yield Verdict(waiting.packet, Action.DROP)
        self._waiting.clear()
        if self.epoch is not None:
            yield Submit(CloseSession(self.settings.gateway, self.epoch))

    def _tracker_silent(self, now: Instant) -> bool:
        last_ns = self._last_answer_ns
        return last_ns is None or now.monotonic_ns - last_ns > TRACKER_SILENT_NS

    def handle_timer(self, now: Instant) -> Iterator[Effect]:
        """Everything whose time has come."""
        for key, waiting in list(self._waiting.items()):
            if waiting.packet is not None and waiting.deadline_ns <= now.monotonic_ns:
                self._waiting[key] = Waiting(waiting.request, None, waiting.deadline_ns)
                self._count("claims_timed_out")
                yield Refuse(*key)
                yield Verdict(waiting.packet, Action.REFUSE)
            elif waiting.packet is None and waiting.deadline_ns + TRACKER_SILENT_NS <= now.monotonic_ns:
                del self._waiting[key]  # whatever comes now is late, and goes back
        for binding, at_ns in list(self._hang_ups.items()):
            if at_ns <= now.monotonic_ns:
                del self._hang_ups[binding]
                held = self._held.get(binding)
                if held is not None:
                    yield CheckPeers(binding, held.element)
        due = [element for at_ns, element in self._purges if at_ns <= now.monotonic_ns]
        self._purges = [(at_ns, element) for at_ns, element in self._purges if at_ns > now.monotonic_ns]
        for element in due:
            if self.binding_of(element.service, element.holder) is None:
                yield Purge(element)
        if now.monotonic_ns >= self._next_tick_ns:
            self._next_tick_ns = now.monotonic_ns + TICK_NS
            yield from self._tick(now)

    def _tick(self, now: Instant) -> Iterator[Effect]:
        if self.epoch is not None:
            self._nonce += 1
            yield Send(Heartbeat(self.settings.gateway, self.epoch, self._nonce))
        elif self._opening_since_ns is not None and now.monotonic_ns - self._opening_since_ns > REOPEN_NS:
            if self._last_answer_ns is not None and self._last_answer_ns >= self._opening_since_ns:
                yield from self._open(now)


def element_of(view: BindingView) -> Element:
    """A binding as the kernel is to hold it."""
    return Element(
        view.resource.service, IPv4Address(view.holder), IPv4Address(view.resource.public_address)
    )
