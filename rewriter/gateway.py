"""The gateway's worker as a machine: upcalls, answers, observations and time in; effects out.

Rule 1: nothing here decides who holds a port. The tracker does; this carries it out and reports.
Rule 2: no I/O and no clock; `now` is an argument. The loop in `service.py` carries effects out in their order
  and hands the outcome back (`installed`, `withdrawn`, …) before any other input, so that a simulator can
  stand in for it.
Rule 3: the log's interval contains the kernel's: installed only after the grant, reported as withdrawn only
  when the kernel has nothing of it. What was reported so (`_ended`) is never installed again, whatever
  answers are still under way.
Rule 4: every queued packet gets exactly one verdict, whatever happens to its claim.
Rule 5: a session's grants end with it: the next one begins with all bindings there are (SessionGranted).
Rule 6: under fence a heartbeat leaves after its offer is made, and a session is closed after its lease is
  ended: the kernel never forwards for longer than the tracker has granted.

Longer than other modules because it is one state machine: every rule above holds between its halves. What
shares no state with it is beside it: `claims.py`, `gaps.py`, `holding.py`, `talking.py`.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Final

from rewriter import cuseeme
from rewriter.claims import TRACKER_SILENT_NS, Claims, claimant_of
from rewriter.cuseeme import Direction
from rewriter.effects import (
    Action,
    Adopt,
    Carried,
    CheckPeers,
    Effect,
    EndLease,
    Install,
    KernelView,
    Offer,
    Purge,
    Refuse,
    RemoveStray,
    Renew,
    Restore,
    Send,
    Settle,
    Stop,
    Submit,
    Verdict,
    Withdraw,
)
from rewriter.gaps import Gaps
from rewriter.holding import SECOND_NS, Held, held_from
from rewriter.packet import TCP, UDP, Endpoint, Flow, UdpPacket
from rewriter.talking import translated, way_of
from rewriter.vocabulary import Element, Key, Protocol, Service, key_of
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    Ending,
    HolderNamed,
    PublicAddressChanged,
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
    WithdrawBinding,
)

TICK_NS: Final = SECOND_NS
HANG_UP_LINGER_NS: Final = 30_000_000
"""Hang-ups come twice or three times within a millisecond (seen in captures); all should still leave."""
PURGE_AGAIN_NS: Final = SECOND_NS
"""A packet that sat in a queue can bring a deleted connection back: connections are deleted a second time."""
UNREADABLE_SETTLED_NS: Final = SECOND_NS // 10
REOPEN_NS: Final = 2 * SECOND_NS
REOPEN_SOONEST_NS: Final = SECOND_NS // 10
TAKE_OVER_AGAIN_NS: Final = SECOND_NS // 2
"""Who takes over and has to wait asks so often: the other one ends meanwhile, and nobody forwards."""
HEARTBEATS_A_LEASE: Final = 6
"""At least so many under fence: the kernel's lease is half as long, and one may be late."""
ENDED_KEPT: Final = 1024
"""So many ended bindings are remembered, lest a late answer bring one back."""
UNKNOWN: Final = Carried()
PROTOCOLS: Final[dict[int, Protocol]] = {UDP: "udp", TCP: "tcp"}


@dataclass(frozen=True, slots=True)
class Settings:
    """`fence`: the kernel forwards only while the lease runs; `standby`: wait while the gateway is taken.

    `revision` says which rules the kernel is to have: another one, and its table has to be replaced.
    """

    gateway: str
    worker: str
    host: str
    services: tuple[Service, ...]
    definitions: tuple[ServiceDefinition, ...]
    claim_timeout_s: float
    take_over: bool = False
    standby: bool = False
    fence: bool = False
    more_public: tuple[IPv4Address, ...] = ()
    """Public addresses beside the first, for second callers of the same peer."""
    revision: int = 0


class Gateway:
    """One worker's knowledge of its gateway. `epoch` is the session's; None before the first one."""

    def __init__(self, settings: Settings, public: IPv4Address | None) -> None:
        self.public = public
        self.epoch: int | None = None
        self.counters: dict[str, int] = {}
        self._held: dict[int, Held] = {}
        self._standing: tuple[Element, ...] = ()  # what the kernel held before the first session
        self._standing_epoch: int | None = None
        self._claims = Claims()
        self._successors: dict[int, list[ClaimPort]] = {}  # binding → the claims that wait for its end
        self._hang_ups: dict[int, int] = {}  # binding → when its peers are looked at
        self._unheard: list[BindingWithdrawn] = []  # of these, what the new session had not heard
        self._ended: dict[int, BindingWithdrawn] = {}  # what was reported of them
        self._purges: list[tuple[int, Element]] = []
        self._services: dict[str, Service] = {}
        self._turned: set[str] = set()  # services that became passthrough, or are it no more
        self._go_by(settings)
        self._wanted = settings  # as configured now
        self._asked = settings  # with which the last OpenSession was sent
        self._grant: SessionGranted | None = None  # the last one that was for this process
        self._opening = False  # an OpenSession of ours is unanswered
        self._closing = False  # nothing new begins any more
        self._reopen_ns: int | None = None
        self._announced = public  # the public address that the tracker has heard of
        self._last_answer_ns: int | None = None
        self._next_tick_ns = 0
        self._settle_ns = 0
        self._nonce = 0
        self._gaps = Gaps(settings.gateway)

    # --- what is known ---------------------------------------------------------------------------------

    def elements(self) -> tuple[Element, ...]:
        """What the kernel should hold, with the idle time as last seen."""
        if self.epoch is None:
            return self._standing
        return tuple(held.timed() for held in self._in_force() if held.installed)

    @property
    def last_answer_ns(self) -> int | None:
        """When the tracker last answered anything, on the monotonic clock."""
        return self._last_answer_ns

    def publics(self) -> tuple[IPv4Address, ...]:
        """The addresses at which something can be held; the first is the one that is asked for."""
        return () if self.public is None else (self.public, *self.settings.more_public)

    def binding_of(self, service: str, holder: Key) -> Held | None:
        """The binding of `service` that `holder` has now."""
        for held in self._in_force():
            if held.element.service == service and held.element.held_by == holder:
                return held
        return None

    def next_deadline_ns(self) -> int:
        """When `handle_timer` wants to be called, on the monotonic clock."""
        deadlines = [self._next_tick_ns, *self._hang_ups.values(), *(at for at, _ in self._purges)]
        deadlines += self._claims.deadlines_ns()
        deadlines += [] if self._reopen_ns is None else [self._reopen_ns]
        return min(deadlines)

    def _in_force(self) -> Iterator[Held]:
        return (held for held in self._held.values() if held.withdrawing is None)

    def _idle_ns(self, service: str) -> int:
        """How long it may be silent; 0 for a service that our configuration does not have."""
        known = self._services.get(service)
        return 0 if known is None else round(known.idle_s * SECOND_NS)

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1

    def _service_of(self, flow: Flow) -> Service | None:
        for service in self.settings.services:
            for ports in service.control:
                if (
                    ports.protocol == PROTOCOLS.get(flow.protocol)
                    and ports.first <= flow.destination.port <= ports.last
                ):
                    return service
        return None

    # --- claims ----------------------------------------------------------------------------------------

    def receive_unreadable(self, packet: int, source: bytes | None, now: Instant) -> Iterator[Effect]:
        """A packet to a control port whose flow can't be told; `source`: its sender's address, if that can.

        It goes on unchanged. The fence behind the queue still keeps it from leaving as a holder's packet.
        """
        self._count("claims_unparsed")
        # An honest claim of the same host must not wait behind this one; but a flood must not be let in.
        if source is not None and now.monotonic_ns >= self._settle_ns:
            self._settle_ns = now.monotonic_ns + UNREADABLE_SETTLED_NS
            for service in self.settings.services:
                if not service.per_peer:  # there its peer would have to be known, too
                    yield Settle(service.name, IPv4Address(source))
        yield Verdict(packet, Action.ACCEPT)

    def receive_claim(
        self, packet: int, flow: Flow, mac: bytes | None, now: Instant, *, room: bool = True
    ) -> Iterator[Effect]:
        """A packet to a control port from a host that holds nothing; `room`: the outbox can take a claim."""
        service = self._service_of(flow)
        if service is None:
            yield from self.receive_unreadable(packet, flow.source.address, now)
            return
        peer = IPv4Address(flow.destination.address) if service.per_peer else None
        key = (service.name, key_of(IPv4Address(flow.source.address), peer))
        if self.binding_of(*key) is not None:
            self._count("claims_by_holder")
            yield Settle(*key)
            yield Verdict(packet, Action.ACCEPT)
            return
        if self._claims.has_packet(key):
            yield Verdict(packet, Action.DROP)
            return
        self._count("claims")
        request = self._claim(service, flow, now, peer=peer, mac=mac)
        if not room or request is None or self._tracker_silent(now):
            if not room:
                self._gaps.refuse_for_room()
            self._count("claims_without_tracker" if room else "claims_without_room")
            yield Refuse(*key)
            yield Verdict(packet, Action.REFUSE)
            return
        self._claims.add(request, packet, self._deadline_ns(now))
        yield Submit(request)

    def _claim(
        self,
        service: Service,
        flow: Flow,
        now: Instant,
        *,
        peer: IPv4Address | None = None,
        mac: bytes | None = None,
    ) -> ClaimPort | None:
        """What to ask the tracker; None while there is no session or no address to ask for."""
        if self.epoch is None or self.public is None:
            return None
        return ClaimPort(
            gateway=self.settings.gateway,
            epoch=self.epoch,
            public_address=self.public.packed,
            service=service.name,
            peer=None if peer is None else peer.packed,
            holder=flow.source.address,
            mac=mac,
            protocol=flow.protocol,
            source_port=flow.source.port,
            destination=flow.destination.address,
            destination_port=flow.destination.port,
            claim_timeout_ms=round(self.settings.claim_timeout_s * 1000),
            observed_ns=now.wall_ns,
        )

    def _deadline_ns(self, now: Instant) -> int:
        return now.monotonic_ns + round(self.settings.claim_timeout_s * SECOND_NS)

    def _claim_fixed(self, now: Instant) -> Iterator[Effect]:
        """For hosts that the configuration names: no packet of theirs has to come first."""
        if self._opening or self._tracker_silent(now):
            return
        for service in self.settings.services:
            holder = service.fixed_holder
            if holder is None or (service.name, holder) in self._claims:
                continue
            if any(held.element.service == service.name for held in self._held.values()):
                continue  # his, or still on its way out
            protocol = UDP if service.control[0].protocol == "udp" else TCP
            to_nobody = Flow(protocol, Endpoint(holder.packed, 0), Endpoint(bytes(4), 0))
            request = self._claim(service, to_nobody, now)
            if request is not None:
                self._claims.add(request, None, self._deadline_ns(now))
                yield Submit(request)

    def see_outbox(self, now: Instant, *, room: bool, drained: bool) -> Iterator[Effect]:
        """Whether the outbox takes claims, and whether it is far from full: that it was full is a record."""
        yield from self._gaps.see_outbox(self.epoch, now, room=room, drained=drained)

    def not_submitted(self, request: ClaimPort) -> Iterator[Effect]:
        """The outbox could not keep the claim (a full disk): as if it had been refused."""
        self._count("claims_not_kept")
        yield from self._refused(request)

    # --- OpenContinues ---------------------------------------------------------------------------------

    def receive_talk(
        self, packet: int, udp: UdpPacket | None, now: Instant, *, hairpinned: bool = False
    ) -> Iterator[Effect]:
        """An OpenContinue of a service connection, after destination NAT and before source NAT.

        `hairpinned`: both ends are on the LAN, and each sees the other at the public address.
        """
        if udp is None:
            self._count("talks_unparsed")
            yield Verdict(packet, Action.ACCEPT)
            return
        found = self._speaker(udp)
        if found is None:
            # Before the first session nobody is known here, and the kernel's own fences do.
            self._count("talks_after_unbinding")
            yield Verdict(packet, Action.DROP if self.epoch is not None else Action.ACCEPT)
            return
        direction, element, held = found
        yield Verdict(packet, Action.ACCEPT, translated(udp, direction, element, hairpinned=hairpinned))
        if held is not None and direction is Direction.OUT:
            yield from self._learn(held, udp, now)

    def translate(self, udp: UdpPacket, *, hairpinned: bool = False) -> bytes | None:
        """The payload of a service connection's packet as it has to go on; None where it is nobody's here."""
        found = self._speaker(udp)
        return None if found is None else translated(udp, found[0], found[1], hairpinned=hairpinned)

    def _speaker(self, udp: UdpPacket) -> tuple[Direction, Element, Held | None] | None:
        """Whose call the packet is of; the binding is unknown before the first session."""
        known: Iterable[tuple[Element, Held | None]] = (
            ((element, None) for element in self._standing)
            if self.epoch is None
            else ((held.element, held) for held in self._in_force())
        )
        for element, held in known:
            way = way_of(element, self._rewritten.get(element.service, ()), udp)
            if way is not None:
                return way, element, held
        return None

    def _learn(self, held: Held, udp: UdpPacket, now: Instant) -> Iterator[Effect]:
        talk = cuseeme.parse(udp.payload)
        if talk is None:
            return
        name = held.learn(talk, IPv4Address(udp.destination.address), now.monotonic_ns)
        if talk.is_hang_up and self._services[held.element.service].fixed_holder is None:
            self._hang_ups.setdefault(held.binding, now.monotonic_ns + HANG_UP_LINGER_NS)
        if name is not None and self.epoch is not None and not self._tracker_silent(now):
            held.set_name(name, now.monotonic_ns)
            yield Submit(HolderNamed(self.settings.gateway, self.epoch, held.binding, name))

    # --- answers ---------------------------------------------------------------------------------------

    def receive_answer(
        self, request: Durable | None, reply: ReplyBody, now: Instant, *, inherited: bool = False
    ) -> Iterator[Effect]:
        """What the tracker says; `inherited`: in answer to a process before this one."""
        self._last_answer_ns = now.monotonic_ns
        match reply:
            case SessionGranted() | SessionDenied():
                # One for a process before us, or a repeat: the session it speaks of is not ours.
                if self._opening and not inherited:
                    yield from self._session_decided(reply, now)
            case SessionOver():
                if reply.epoch == self.epoch and not self._opening and not self._closing:
                    yield from self._open()
            case ClaimGranted() | ClaimRefused():
                # Also one for a process before us: its bindings came with our own session.
                if isinstance(request, ClaimPort) and not inherited:
                    yield from self._claim_decided(request, reply, now)
            case WithdrawBinding():
                successor = request if isinstance(request, ClaimPort) and not inherited else None
                yield from self._ordered(reply, successor, now)
            case HeartbeatAcknowledged():
                # What it is worth, the kernel knows: this process may have been stopped on its way here.
                if self.settings.fence and reply.epoch == self.epoch and self._grant is not None:
                    yield Renew(reply.nonce, self._grant.lease_ms)
            case Acknowledged():
                pass
            case _:
                self._count("answers_unexpected")

    def _session_decided(self, reply: SessionGranted | SessionDenied, now: Instant) -> Iterator[Effect]:
        self._opening = False
        match reply:
            case SessionGranted() if self._closing:
                # Under fence the lease of a table that we never replaced may run on, and a closed session
                # would hold nobody off: so ours runs out.
                if self.epoch is not None or not self.settings.fence:
                    yield Submit(CloseSession(reply.gateway, reply.epoch))
            case SessionGranted():
                yield from self._session_granted(reply)
            case SessionDenied():
                self._count("sessions_denied")
                owner = f"gateway {reply.gateway} is {reply.worker}'s on {reply.host}"
                if self.epoch is not None:
                    yield Stop(f"{owner}: taken over")
                elif self._waits_behind(reply.worker):
                    left_ns = max(REOPEN_SOONEST_NS, reply.lease_left_ms * SECOND_NS // 1000)
                    most_ns = TAKE_OVER_AGAIN_NS if self.settings.take_over else REOPEN_NS
                    self._reopen_ns = now.monotonic_ns + min(most_ns, left_ns)
                else:
                    yield Stop(f"{owner}; take it over with --take-over, or wait for it with standby = true")

    def _waits_behind(self, worker: str) -> bool:
        """Whether we ask again until the gateway is free; one of our own name has just been here."""
        return self.settings.standby or self.settings.take_over or worker == self.settings.worker

    def _session_granted(self, reply: SessionGranted) -> Iterator[Effect]:
        self._grant = reply
        self._go_by(self._asked)
        # The older epoch's queues end with the table: a packet left in them could get no verdict any more.
        yield from self._claims.drop_all()
        self._successors.clear()
        if self.epoch is not None and reply.epoch <= self.epoch:
            # Another log was put in the old one's place: its numbers mean other bindings.
            for known in (self._held, self._hang_ups, self._ended):
                known.clear()
        # Reported already, perhaps after the tracker had answered: never again in the kernel, see `adopted`.
        views = [view for view in reply.bindings if view.binding not in self._ended]
        numbers = [view.binding for view in reply.bindings]
        self._unheard = [self._ended[number] for number in numbers if number in self._ended]
        for binding in self._held.keys() - set(numbers):
            del self._held[binding]  # ended in the tracker; the kernel loses it with the new table
            self._hang_ups.pop(binding, None)
        for view in views:
            if view.binding not in self._held:
                self._held[view.binding] = held_from(view, self._idle_ns(view.resource.service))
        wanted = [(held.binding, held.element) for held in self._held.values() if self._fits(held)]
        yield Adopt(reply.epoch, tuple(wanted), reply.moved_epoch)

    def _fits(self, held: Held) -> bool:
        """Whether our configuration has its service (still), and does not give it to another host."""
        service = self._services.get(held.element.service)
        if service is None or service.per_peer != (held.element.peer is not None):
            return False
        if service.name in self._turned:
            return False
        return service.fixed_holder in (None, held.element.holder)

    def _claim_decided(
        self, request: ClaimPort, reply: ClaimGranted | ClaimRefused, now: Instant
    ) -> Iterator[Effect]:
        match reply:
            case ClaimGranted(view):
                if request.epoch == self.epoch:
                    yield from self._granted(request, view, now)
                else:
                    # It was among the bindings with which our session began, or it ended before.
                    self._count("grants_of_older_sessions")
            case ClaimRefused(_, _, binding):
                # Withdrawn while the answer was on its way: the port may be free already.
                is_over = binding is not None and binding in self._ended
                yield from self._refused(request, is_over=is_over)

    def _granted(self, request: ClaimPort, view: BindingView, now: Instant) -> Iterator[Effect]:
        # By host, not by request: a grant of an earlier claim serves the packet that waits now.
        key = claimant_of(request)
        waiting = self._claims.take(key)
        packet = None if waiting is None else waiting.packet
        if view.binding in self._held:
            if packet is not None:
                yield Settle(*key)
                yield Verdict(packet, Action.ACCEPT)
            return
        if view.binding not in self._ended:
            # Nobody waits for it any more: say so at once, or the port would be lost to all until idle.
            reason = Ending.LATE if waiting is None else None
            if IPv4Address(view.resource.public_address) not in self.publics():
                reason = Ending.ADDRESS_CHANGED
            if reason is None:
                held = held_from(view, self._idle_ns(request.service), packet)
                # By the packet that waits: it need not be seen again before somebody else is hung up on.
                held.dialled[IPv4Address(request.destination)] = now.monotonic_ns
                self._held[view.binding] = held
                yield Install(view.binding, held.element)
                return
            self._count("grants_given_back")
            yield from self._report_ended(view.binding, reason, now)
        # Its end is on the way to the tracker, and what the host sends next claims anew behind it.
        if packet is not None:
            yield Settle(*key)
            yield Verdict(packet, Action.DROP)

    def _claim_again(self, request: ClaimPort, now: Instant) -> Iterator[Effect]:
        """The same claim, behind the word that the holder before is gone."""
        again = replace(request, observed_ns=now.wall_ns)
        if self._claims.renew(request, again):  # else whoever sends next takes what is free now
            yield Submit(again)

    def _refused(self, request: ClaimPort, *, is_over: bool = False) -> Iterator[Effect]:
        waiting, key = self._claims.take_refused(request), claimant_of(request)
        if waiting is None:
            return
        self._count("claims_refused")
        yield Settle(*key) if is_over else Refuse(*key)
        if waiting.packet is not None:
            yield Verdict(waiting.packet, Action.REFUSE)

    def _ordered(self, order: WithdrawBinding, successor: ClaimPort | None, now: Instant) -> Iterator[Effect]:
        """`successor`: the claim for which it has to go (policy "last"), to be made again behind its end."""
        held = self._held.get(order.binding)
        if held is not None:
            if successor is not None:
                self._successors.setdefault(order.binding, []).append(successor)
            yield from self._withdraw(held, order.reason)
            return
        if order.binding not in self._ended and self.epoch is not None:
            # Its grant was never heard, and is now worth nothing: the kernel does not have it.
            yield from self._report_ended(order.binding, order.reason, now)
        if successor is not None:
            yield from self._claim_again(successor, now)

    # --- outcomes --------------------------------------------------------------------------------------

    def installed(self, binding: int, now: Instant) -> Iterator[Effect]:
        """The kernel has it: only now may the packet that asked go on."""
        held = self._held[binding]
        held.set_installed(now.monotonic_ns)
        if held.packet is not None:
            yield Verdict(held.packet, Action.ACCEPT)
        if self.epoch is not None:
            yield Submit(BindingInstalled(self.settings.gateway, self.epoch, binding, now.wall_ns))

    def install_failed(self, binding: int, now: Instant) -> Iterator[Effect]:
        """The kernel would not: the port goes back, and the packet is refused."""
        del now
        self._count("installs_failed")
        held = self._held[binding]
        yield Refuse(held.element.service, held.element.held_by)
        if held.packet is not None:
            yield Verdict(held.packet, Action.REFUSE)
        yield from self._withdraw(held, Ending.LOST)

    def withdrawn(self, binding: int, now: Instant, carried: Carried = UNKNOWN) -> Iterator[Effect]:
        """The kernel has let go: now the tracker may hear of it."""
        held = self._held.pop(binding)
        self._hang_ups.pop(binding, None)
        self._purges.append((now.monotonic_ns + PURGE_AGAIN_NS, held.element))
        if held.withdrawing is None:
            raise ValueError(f"binding {binding} was withdrawn unasked")
        yield from self._report_ended(binding, held.withdrawing, now, held.last_packet_ns, carried)
        for request in self._successors.pop(binding, ()):
            yield from self._claim_again(request, now)

    def _report_ended(
        self,
        binding: int,
        reason: Ending,
        now: Instant,
        last_packet_ns: int | None = None,
        carried: Carried = UNKNOWN,
    ) -> Iterator[Effect]:
        """The kernel has nothing of it, and never will again."""
        if self.epoch is None:
            raise ValueError(f"binding {binding} ended without a session to say so")
        if last_packet_ns is not None:
            last_packet_ns += now.wall_ns - now.monotonic_ns
        report = BindingWithdrawn(
            gateway=self.settings.gateway,
            epoch=self.epoch,
            binding=binding,
            reason=reason,
            withdrawn_ns=now.wall_ns,
            last_packet_ns=last_packet_ns,
            packets=carried.packets,
            octets=carried.octets,
            callers=carried.callers,
        )
        self._ended[binding] = report
        if len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        yield Submit(report)

    def adopted(
        self, epoch: int, kept: Iterable[int], now: Instant, *, before: int | None
    ) -> Iterator[Effect]:
        """The table is this epoch's, and holds the bindings `kept`; the others are gone from the kernel.

        `before`: the epoch of the table that stood there, None if there was none.
        """
        is_again = epoch == self.epoch  # with other rules
        self.epoch = epoch
        self._standing = ()
        yield from self._gaps.begin_session(epoch, now, new_queues=not is_again)
        for report in self._unheard:
            # The tracker took it from no worker whose session was over; told twice, it counts once.
            yield Submit(replace(report, epoch=epoch))
        self._unheard.clear()
        keeping = set(kept)
        for held in list(self._held.values()):
            if held.binding in keeping:
                held.installed = True
                continue
            del self._held[held.binding]
            self._hang_ups.pop(held.binding, None)
            ran_out = held.may_be_idle(now.monotonic_ns) if is_again else self._ran_out(held, before)
            reason = Ending.IDLE if ran_out else Ending.LOST
            if not self._fits(held):
                reason = Ending.RECONFIGURED
            yield from self._report_ended(held.binding, reason, now, held.last_packet_ns)
        yield from self._leave_old_addresses()
        yield from self._announce(now)
        if self.settings.fence:  # at once: until it is acknowledged nothing is forwarded
            yield from self._heartbeat(epoch)
        yield from self._claim_fixed(now)

    def _ran_out(self, held: Held, before: int | None) -> bool:
        """Whether a binding that the kernel lacks ran idle there while nobody looked.

        So it is if its table (epoch `before`) was there since the grant, no other worker has spoken for it,
        who may have taken it out, and it is old enough: what was never installed is not.
        """
        grant = self._grant
        if grant is None or before is None:
            return False
        is_old = grant.granted_ns - held.since_ns >= held.idle_ns  # both by the tracker's clock
        return is_old and before >= max(held.epoch, grant.trusted_epoch)

    def restored(self, what: str, now: Instant) -> Iterator[Effect]:
        """The kernel is as it should be again: the hole goes into the log."""
        yield from self._gaps.restored(self.epoch, what, now)

    def peers_seen(self, binding: int, live: Iterable[IPv4Address]) -> Iterator[Effect]:
        """After a hang-up: unbind unless another peer is in conversation, or is being called."""
        held = self._held.get(binding)
        if held is not None and held.is_over(live):
            yield from self._withdraw(held, Ending.HANG_UP)

    def _withdraw(self, held: Held, reason: Ending) -> Iterator[Effect]:
        if held.withdrawing is None:
            held.withdrawing = reason
            yield Withdraw(held.binding, held.element, reason)

    # --- the kernel as seen ----------------------------------------------------------------------------

    def observe(self, kernel: KernelView, now: Instant) -> Iterator[Effect]:
        """Compare what the kernel holds with what it should; `now` is when the look began.

        Before the first session: learn what it holds, so that the calls in progress are translated.
        """
        if kernel.epoch is None:
            yield Restore("table", self.elements())
            return  # nothing can be taken from a table that has just come back; the next look is in a second
        ours = self._standing_epoch if self.epoch is None else self.epoch
        if ours not in (None, kernel.epoch):
            # Also before the first session: standing in must not put queue rules before the new worker's.
            yield Stop(f"the kernel's table is of epoch {kernel.epoch}, ours is {ours}: taken over")
            return
        if not kernel.queueing:
            yield Restore("queue rules", ())
        if not kernel.routed:
            yield Restore("routing", ())
        if kernel.public != self.public:
            self.public = kernel.public
            yield from self._leave_old_addresses()
            yield from self._announce(now)
        whole = True
        if self.epoch is None:
            self._standing, self._standing_epoch = tuple(kernel.elements()), kernel.epoch
        else:
            unheard = self._tracker_silent(now)
            yield from self._gaps.see_dropped(self.epoch, kernel.dropped, now, unheard=unheard)
            whole = yield from self._compare(kernel, now)
        if kernel.queueing and kernel.routed and whole:
            self._gaps.see_good(now)

    def _compare(self, kernel: KernelView, now: Instant) -> Generator[Effect, None, bool]:
        """End what ran idle, bring back what is missing, remove strays; whether nothing was missing."""
        broken: list[Element] = []
        for held in [held for held in self._in_force() if held.installed]:
            element = held.element
            key = (element.service, element.held_by)
            left_s = kernel.holders.get(key)
            if left_s is not None:
                held.see(left_s, now.monotonic_ns)
            may_be_idle = held.may_be_idle(now.monotonic_ns)
            if left_s is None and may_be_idle:
                yield from self._withdraw(held, Ending.IDLE)
                continue
            inbound = kernel.inbound.get((element.service, element.held_at))
            mapped = inbound == element.holder and kernel.outbound.get(key) == element.public
            if (left_s is not None and mapped) or (inbound is None and may_be_idle):
                continue
            if inbound not in (None, element.holder):
                yield RemoveStray(element.service, None, element.held_at)
            broken.append(held.timed())
        if broken:
            yield Restore("elements", tuple(broken))
        holders = {(held.element.service, held.element.held_by) for held in self._held.values()}
        publics = {(held.element.service, held.element.held_at) for held in self._held.values()}
        for service, holder in kernel.holders.keys() - holders:
            yield RemoveStray(service, holder, None)
        for service, public in kernel.inbound.keys() - publics:
            yield RemoveStray(service, None, public)
        return not broken

    def _leave_old_addresses(self) -> Iterator[Effect]:
        for held in list(self._in_force()):
            if held.element.public not in self.publics():
                yield from self._withdraw(held, Ending.ADDRESS_CHANGED)

    def _announce(self, now: Instant) -> Iterator[Effect]:
        """Tell the tracker of another public address, once there is a session that will remember it."""
        if self.epoch is None or self._opening or self._announced == self.public:
            return
        old, self._announced = self._announced, self.public
        yield Submit(
            PublicAddressChanged(
                gateway=self.settings.gateway,
                epoch=self.epoch,
                old=None if old is None else old.packed,
                new=None if self.public is None else self.public.packed,
                observed_ns=now.wall_ns,
            )
        )

    # --- the session, and time -------------------------------------------------------------------------

    def open_session(self, now: Instant) -> Iterator[Effect]:
        """Ask for the gateway; to be called once, at the start."""
        del now
        yield from self._open()

    def _open(self) -> Iterator[Effect]:
        self._opening, self._reopen_ns = True, None
        self._announced, self._asked = self.public, self._wanted
        yield Submit(
            OpenSession(
                gateway=self.settings.gateway,
                public_addresses=tuple(address.packed for address in self.publics()),
                services=self._asked.definitions,
                host=self.settings.host,
                # Once: two that take over from each other would do so for ever.
                take_over=self.settings.take_over and self.epoch is None,
                fence=self.settings.fence,
            )
        )

    def reconfigure(self, wanted: Settings) -> Iterator[Effect]:
        """Other services, another time-out, other rules for the kernel; all else is as it was.

        What the tracker has to hear of takes effect with its answer: a session opened anew. Without a
        session, all waits for one.
        """
        self._wanted = wanted
        yield from self._take_wanted()

    def _take_wanted(self) -> Iterator[Effect]:
        wanted, before = self._wanted, self.settings
        if wanted == before or self.epoch is None or self._opening or self._closing:
            return
        if wanted.definitions != before.definitions:
            if not self._gaps.is_outbox_full:  # else at a later tick
                yield from self._open()
            return
        self._go_by(wanted)
        if wanted.revision != before.revision:
            holding = ((held.binding, held.element) for held in self._held.values() if self._fits(held))
            yield Adopt(self.epoch, tuple(holding))

    def _go_by(self, settings: Settings) -> None:
        """From here on; a table by other settings has to be replaced at once."""
        former, self.settings = self._services, settings
        self._turned = {
            service.name
            for service in settings.services
            if service.passthrough != former.get(service.name, service).passthrough
        }
        self._services = {service.name: service for service in settings.services}
        self._rewritten = {it.name: it.ports() for it in settings.services if it.rewrites}
        for held in self._held.values():
            held.set_idle(self._idle_ns(held.element.service))
        # Of a service that is no more, nothing is left when the table is replaced.
        self._purges = [(at_ns, it) for at_ns, it in self._purges if it.service in self._services]

    def close_session(self) -> Iterator[Effect]:
        """A clean stop: calls go on in the kernel, and another worker may come at once.

        Under fence nothing goes on: a closed session holds nobody off. Answers may still come: what they
        grant is given back.
        """
        self._closing = True
        yield from self._claims.drop_all()
        if self.epoch is not None:
            if self.settings.fence:
                yield EndLease()
            yield Submit(CloseSession(self.settings.gateway, self.epoch))

    def _tracker_silent(self, now: Instant) -> bool:
        last_ns = self._last_answer_ns
        return last_ns is None or now.monotonic_ns - last_ns > TRACKER_SILENT_NS

    def handle_timer(self, now: Instant) -> Iterator[Effect]:
        """Everything whose time has come."""
        yield from self._give_up_claims(now)
        for binding in [binding for binding, at_ns in self._hang_ups.items() if at_ns <= now.monotonic_ns]:
            del self._hang_ups[binding]
            held = self._held[binding]
            held.forget_dialled(now.monotonic_ns)
            yield CheckPeers(binding, held.element)
        due = [element for at_ns, element in self._purges if at_ns <= now.monotonic_ns]
        self._purges = [(at_ns, element) for at_ns, element in self._purges if at_ns > now.monotonic_ns]
        for element in due:
            if self.binding_of(element.service, element.held_by) is None:
                yield Purge(element)
        if now.monotonic_ns >= self._next_tick_ns:
            self._next_tick_ns = now.monotonic_ns + self._tick_ns()
            if self.epoch is not None:
                yield from self._heartbeat(self.epoch)
                yield from self._claim_fixed(now)
                yield from self._take_wanted()
        if self._reopen_ns is not None and now.monotonic_ns >= self._reopen_ns:
            yield from self._open()

    def _give_up_claims(self, now: Instant) -> Iterator[Effect]:
        for claimant, packet in self._claims.given_up(now):
            self._count("claims_timed_out")
            yield Refuse(*claimant)
            yield Verdict(packet, Action.REFUSE)

    def _tick_ns(self) -> int:
        """From one heartbeat to the next."""
        if not self.settings.fence or self._grant is None:
            return TICK_NS
        return min(TICK_NS, self._grant.lease_ms * SECOND_NS // 1000 // HEARTBEATS_A_LEASE)

    def _heartbeat(self, epoch: int) -> Iterator[Effect]:
        self._nonce += 1
        if self.settings.fence and self._grant is not None:
            yield Offer(self._nonce, self._grant.lease_ms)
        yield Send(Heartbeat(self.settings.gateway, epoch, self._nonce))
