"""The gateway's machine against the tracker's real decisions and a kernel of dictionaries, in any order.

Answers come late, out of order, twice or to the next process; elements run out, are flushed and stray; the
session is lost and given again; the public address changes. After each step: every packet in at most one
hand, and what the kernel holds is open in the log. In the end: tracker, machine and kernel agree.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from itertools import chain

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rewriter.cuseeme import Message
from rewriter.effects import (
    Adopt,
    CheckPeers,
    Effect,
    EndLease,
    Install,
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
from rewriter.gateway import Gateway
from rewriter.vocabulary import Element, element_of
from tests.unit.rewriter.playbook import (
    ANN,
    BOB,
    MAC,
    NEW_PUBLIC,
    OTHER_PEER,
    PEER,
    PUBLIC,
    SECOND_NS,
    SETTINGS,
    flow,
    moment,
    open_continue,
)
from tests.unit.rewriter.surroundings import IDLE_NS, Kernel, Tracker
from tracker.events import BindingInstalled, BindingWithdrawn, Ending
from tracker.messages import CloseSession, Durable, Heartbeat, OpenSession, ReplyBody, WithdrawBinding
from tracker.ownership import FromWorker, PassTime

PORTS = {"cuseeme": 7648, "chat": 9000}
hosts = st.sampled_from([ANN, BOB])
services = st.sampled_from(["cuseeme", "chat"])


@dataclass(slots=True)
class Letter:
    """A message in the outbox; `reply` once the tracker has decided."""

    message: Durable
    process: int
    reply: ReplyBody | None = None
    read: bool = False


class Gateways(RuleBasedStateMachine):
    """One gateway, its worker's processes one after the other, and the tracker."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.tracker = Tracker()
        self.kernel = Kernel()
        self.public: IPv4Address | None = PUBLIC
        self.outbox: list[Letter] = []
        self.volatile: list[ReplyBody] = []
        self.process = 0
        self.packets: set[int] = set()
        self.number = 0
        self.reported: set[int] = set()
        self.adopted_once = False
        self.live: set[IPv4Address] = set()
        self.install_fails = False
        self.stopped = False
        self.gateway = Gateway(SETTINGS, self.public)

    # --- the loop, as service.py has it --------------------------------------------------------------------

    def carry_out(self, effects: Iterable[Effect]) -> None:
        waiting: deque[Iterable[Effect]] = deque([effects])
        while waiting:
            follow = [self.carry_out_one(effect) for effect in waiting.popleft()]
            waiting.extendleft(reversed(follow))

    def carry_out_one(self, effect: Effect) -> Iterable[Effect]:  # noqa: C901, PLR0911, PLR0912 - a table
        gateway, kernel, now = self.gateway, self.kernel, moment(self.seconds)
        needs_table = (Install, Withdraw, Purge, RemoveStray, Refuse, Settle)
        if isinstance(effect, needs_table) and kernel.epoch is None:
            # At once: when the effects before it have had their outcomes, something else may be held.
            restored = self.carry_out_one(Restore("table", gateway.elements()))
            return chain(restored, self.carry_out_one(effect))
        match effect:
            case Verdict(packet):
                assert packet in self.packets, f"a second verdict: {effect}"
                self.packets.remove(packet)
            case Submit(message):
                self.submit(message)
            case Send(message):
                assert isinstance(message, Heartbeat)
                reply = self.tracker.say(FromWorker("w1", message), self.seconds)
                if reply is not None:
                    self.volatile.append(reply)
            case Install(binding, element):
                return self.install(binding, element)
            case Withdraw(binding, element):
                assert kernel.epoch == gateway.epoch
                kernel.remove(element.service, element.holder)
                return gateway.withdrawn(binding, now)
            case Purge(element) | CheckPeers(_, element):
                if isinstance(effect, CheckPeers):
                    return gateway.peers_seen(effect.binding, self.live)
                assert gateway.binding_of(element.service, element.holder) is None
                kernel.remove(element.service, element.holder)
            case RemoveStray(service, holder, public):
                if holder is not None:
                    assert (service, holder) in kernel.strays, f"no stray: {effect}"
                    kernel.remove(service, holder)
                if public is not None:
                    kernel.inbound.pop((service, public), None)
            case Adopt():
                return self.adopt(effect)
            case Restore(what, elements):
                kernel.epoch = kernel.epoch if kernel.epoch is not None else self.standing_epoch()
                kernel.queueing = True
                for element in elements:
                    kernel.add(element, now.monotonic_ns)
                return gateway.restored(what, now)
            case Stop():
                self.stopped = True
            case Refuse() | Settle() | Offer() | Renew() | EndLease():
                pass
        return ()

    def standing_epoch(self) -> int:
        return 0 if self.gateway.epoch is None else self.gateway.epoch

    def submit(self, message: Durable) -> None:
        if not isinstance(message, OpenSession):
            assert self.adopted_once, f"without a session: {message}"
        if isinstance(message, BindingWithdrawn):
            element = self.tracker.open_elements().get(message.binding)
            if element is not None:
                key = (element.service, element.holder)
                held = key in self.kernel.holders and key not in self.kernel.strays
                assert not (held and self.kernel.outbound.get(key) == element.public), f"too early: {message}"
            self.reported.add(message.binding)
        if isinstance(message, BindingInstalled):
            assert message.binding not in self.reported
        self.outbox.append(Letter(message, self.process))

    def install(self, binding: int, element: Element) -> Iterable[Effect]:
        now = moment(self.seconds)
        assert binding not in self.reported, f"binding {binding} was reported as withdrawn"
        assert self.tracker.open_elements().get(binding) == element, f"binding {binding} is not granted"
        if self.install_fails:
            self.install_fails = False
            return self.gateway.install_failed(binding, now)
        for key in [key for key in self.kernel.strays if key[0] == element.service]:
            self.kernel.remove(*key)
        there = self.kernel.inbound.get((element.service, element.public))
        assert there is None, f"{there} still has {element.public}"
        self.kernel.add(element, now.monotonic_ns)
        return self.gateway.installed(binding, now)

    def adopt(self, adoption: Adopt) -> Iterable[Effect]:
        assert not self.packets, "packets in the queues of an older epoch"
        now, old = moment(self.seconds), self.kernel
        self.kernel = Kernel()
        self.kernel.epoch, self.kernel.queueing = adoption.epoch, True
        kept: list[int] = []
        for binding, element in adoption.bindings:
            key = (element.service, element.holder)
            if (old.epoch or 0) < adoption.moved_epoch:
                # Whatever a process before reported of it, the worker on the other host went on with it.
                self.reported.discard(binding)
                self.kernel.add(element, now.monotonic_ns)
                kept.append(binding)
            elif key in old.holders and old.outbound.get(key) == element.public:
                assert binding not in self.reported, f"binding {binding} was reported as withdrawn"
                left_s = (old.holders[key] - now.monotonic_ns) / SECOND_NS
                self.kernel.add(replace(element, left_s=left_s), now.monotonic_ns)
                kept.append(binding)
        self.adopted_once = True
        return self.gateway.adopted(adoption.epoch, kept, now, before=old.epoch)

    # --- what happens --------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.start()
        self.all_arrives()

    def start(self) -> None:
        """As service.py begins: stand in, look, ask."""
        self.stopped = False
        self.adopted_once = False
        if self.kernel.epoch is None:
            self.kernel.epoch, self.kernel.queueing = 0, True
        self.look()
        self.carry_out(self.gateway.open_session(moment(self.seconds)))

    def next_packet(self) -> int:
        self.number += 1
        self.packets.add(self.number)
        return self.number

    @rule()
    def all_arrives(self) -> None:
        """Without it the random orders would spend their time waiting for a session."""
        self.heartbeat_is_answered(lost=False)
        self.tracker_reads(1_000)
        while unread := [letter for letter in self.outbox if letter.reply is not None and not letter.read]:
            if self.stopped:
                return
            self.read(unread[0])
            self.tracker_reads(1_000)

    @rule(host=hosts, service=services)
    def claims_and_is_heard(self, host: IPv4Address, service: str) -> None:
        self.all_arrives()
        self.claims(host, service, room=True)
        self.all_arrives()

    @rule(host=hosts, service=services, room=st.sampled_from([True] * 9 + [False]))
    def claims(self, host: IPv4Address, service: str, room: bool) -> None:
        self.look()
        packet = self.next_packet()
        now = moment(self.seconds)
        claimed = flow(host, port=PORTS[service])
        self.carry_out(self.gateway.receive_claim(packet, claimed, MAC, now, room=room))

    @precondition(lambda self: self.kernel.outbound)
    @rule(
        pick=st.integers(0, 3),
        peer=st.sampled_from([PEER, OTHER_PEER]),
        message=st.sampled_from([Message.OPEN, Message.CLOSE]),
        name=st.sampled_from(["", "Ann", "Eve"]),
        inwards=st.booleans(),
        waits=st.sampled_from([0.0, 0.03]),
    )
    def calls(
        self, *, pick: int, peer: IPv4Address, message: int, name: str, inwards: bool, waits: float
    ) -> None:
        """Somebody who holds says something, or hears it."""
        keys = sorted(self.kernel.outbound)
        self.talks(host=keys[pick % len(keys)][1], peer=peer, message=message, name=name, inwards=inwards)
        self.time_passes(waits)

    @rule(
        host=hosts,
        peer=st.sampled_from([PEER, OTHER_PEER]),
        message=st.sampled_from([Message.OPEN, Message.CLOSE]),
        name=st.sampled_from(["", "Ann", "Eve"]),
        inwards=st.booleans(),
    )
    def talks(self, *, host: IPv4Address, peer: IPv4Address, message: int, name: str, inwards: bool) -> None:
        ends = (peer, host) if inwards else (host, peer)
        key = ("cuseeme", host)
        if key in self.kernel.holders and key not in self.kernel.strays and not inwards:
            self.kernel.holders[key] = moment(self.seconds).monotonic_ns + IDLE_NS
            self.live.add(peer)
        packet = self.next_packet()
        udp = open_continue(*ends, message=message, name=name)
        self.carry_out(self.gateway.receive_talk(packet, udp, moment(self.seconds)))
        assert packet not in self.packets, "an OpenContinue waits for nobody"

    @rule(most=st.integers(1, 5))
    def tracker_reads(self, most: int) -> None:
        for letter in [letter for letter in self.outbox if letter.reply is None][:most]:
            age_ms = 0 if letter.process == self.process else 2**32 - 1
            body = FromWorker("w1", letter.message, age_ms)
            letter.reply = self.tracker.say(body, self.seconds)
            assert letter.reply is not None

    def read(self, letter: Letter) -> None:
        assert letter.reply is not None
        inherited = letter.process != self.process
        letter.read = True
        now = moment(self.seconds)
        answered = self.gateway.receive_answer(letter.message, letter.reply, now, inherited=inherited)
        self.carry_out(answered)

    @rule(pick=st.integers(0, 9))
    def worker_reads(self, pick: int) -> None:
        """Mostly the oldest; sometimes a later one, as when a reply was lost on its way."""
        unread = [letter for letter in self.outbox if letter.reply is not None and not letter.read]
        if unread and not self.stopped:
            self.read(unread[pick - 6 if 6 < pick < 6 + len(unread) else 0])

    @rule(pick=st.integers(0, 1000))
    def worker_reads_again(self, pick: int) -> None:
        again = [letter for letter in self.outbox if letter.read]
        if again and not self.stopped:
            self.read(again[pick % len(again)])

    @rule(lost=st.booleans())
    def heartbeat_is_answered(self, lost: bool) -> None:
        replies, self.volatile = self.volatile, []
        for reply in replies:
            if not lost and not self.stopped:
                self.carry_out(self.gateway.receive_answer(None, reply, moment(self.seconds)))

    @rule(seconds=st.sampled_from([0.01, 0.03, 0.5, 1.0, 3.5, 299.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.seconds += seconds
        self.kernel.expire(moment(self.seconds).monotonic_ns)
        self.carry_out(self.gateway.handle_timer(moment(self.seconds)))

    @rule()
    def look(self) -> None:
        now = moment(self.seconds)
        self.carry_out(self.gateway.observe(self.kernel.view(self.public, now.monotonic_ns), now))

    @rule(
        what=st.sampled_from(["flush", "inbound", "holders", "queue rules", "stray", "refusal", "address"]),
        host=hosts,
        public=st.sampled_from([PUBLIC, PUBLIC, NEW_PUBLIC, None]),
    )
    def kernel_changes(self, what: str, host: IPv4Address, public: IPv4Address | None) -> None:
        kernel = self.kernel
        match what:
            case "flush":
                kernel.flush()
            case "inbound":
                kernel.inbound.clear()
            case "holders":
                kernel.holders.clear()
                kernel.strays.clear()
            case "queue rules":
                kernel.queueing = False
            case "stray" if ("chat", host) not in kernel.holders and kernel.epoch is not None:
                kernel.holders["chat", host] = moment(self.seconds).monotonic_ns + IDLE_NS
                kernel.strays.add(("chat", host))
            case "refusal":
                self.install_fails = True
            case "address":
                self.public = public
            case _:
                pass

    @rule(what=st.sampled_from(["revoke", "take over", "come and go", "leave", "pass time"]))
    def tracker_changes(self, what: str) -> None:
        """An operator, or another worker of the gateway on another host; it leaves our bindings alone."""
        match what:
            case "revoke" if self.tracker.state.bindings and not self.stopped:
                order = WithdrawBinding("gw", min(self.tracker.state.bindings), Ending.REVOKE)
                self.carry_out(self.gateway.receive_answer(None, order, moment(self.seconds)))
            case "take over":
                self.other_worker_comes()
            case "come and go":
                self.other_worker_comes()
                self.other_worker_leaves()
            case "leave":
                self.other_worker_leaves()
            case "pass time":
                self.tracker.say(PassTime(), self.seconds)
            case _:
                pass

    def other_worker_comes(self) -> None:
        addresses = (PUBLIC.packed,)
        opening = OpenSession(
            "gw", addresses, SETTINGS.definitions, "other/boot", take_over=True, fence=False
        )
        self.tracker.say(FromWorker("w2", opening), self.seconds)

    def other_worker_leaves(self) -> None:
        epoch = self.tracker.state.gateways["gw"].epoch if self.tracker.state.gateways else 0
        self.tracker.say(FromWorker("w2", CloseSession("gw", epoch)), self.seconds)

    @rule(cleanly=st.booleans(), prompt=st.booleans())
    def worker_starts_anew(self, cleanly: bool, prompt: bool) -> None:
        if cleanly:
            self.carry_out(self.gateway.close_session())
            assert not self.packets
        self.packets.clear()  # the kernel drops what nobody's queue holds
        self.volatile.clear()
        self.process += 1
        self.gateway = Gateway(SETTINGS, self.public)
        self.start()
        if prompt:
            self.all_arrives()

    # --- what must hold ------------------------------------------------------------------------------------

    @invariant()
    def the_logs_interval_contains_the_kernels(self) -> None:
        granted = set(self.tracker.open_elements().values())
        for key, public in self.kernel.outbound.items():
            if key in self.kernel.holders and key not in self.kernel.strays:
                assert element_of(*key, public) in granted, f"{key} holds {public} without a record"

    @invariant()
    def nobody_shares_a_port(self) -> None:
        held = [
            (service, self.kernel.outbound.get((service, host)))
            for service, host in self.kernel.holders
            if (service, host) not in self.kernel.strays
        ]
        assert len(held) == len(set(held))

    @invariant()
    def the_timer_is_set(self) -> None:
        assert self.gateway.next_deadline_ns() <= moment(self.seconds).monotonic_ns + SECOND_NS

    def teardown(self) -> None:
        """All that is under way arrives, and time passes: then all three agree."""
        self.install_fails = False
        self.public = PUBLIC
        self.other_worker_leaves()
        if self.stopped:
            self.worker_starts_anew(cleanly=False, prompt=False)
        for _ in range(12):
            self.tracker_reads(1_000)
            for letter in [letter for letter in self.outbox if not letter.read]:
                self.read(letter)
            self.heartbeat_is_answered(lost=False)
            self.time_passes(1.1)
            self.look()
            if self.stopped:
                self.worker_starts_anew(cleanly=False, prompt=False)
        assert not self.packets, "packets without a verdict"
        assert self.gateway.epoch == self.tracker.state.gateways["gw"].epoch
        granted = self.tracker.open_elements()
        installed = {Element(e.service, e.holder, e.public) for e in self.gateway.elements()}
        in_kernel = {element_of(*key, public) for key, public in self.kernel.outbound.items()}
        assert set(granted.values()) == installed == in_kernel
        assert self.kernel.holders.keys() == self.kernel.outbound.keys()
        assert not self.reported & granted.keys(), "reported, and open in the log"


Gateways.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestGateways = Gateways.TestCase
