"""The simulated kernel against the real one: the same batches, packets and deletions, one after the other.

Rule 1: after each step both hold the same elements and connections, and the same packets have arrived.
Rule 2: time is the real one for both; what is about to run out is waited for, so that no step meets it.
"""

import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import pytest

from rewriter import probing, queue_rules, ruleset
from rewriter.command import KernelRefused
from rewriter.connections import delete_connections, parse_connection
from rewriter.cuseeme import Message
from rewriter.phrases import address_pair
from rewriter.tables import Tables
from rewriter.vocabulary import CLAIM, TALK, Element, Ruleset, Service
from tools.lab import Lab
from tools.simulation.netfilter import MARK_SHIFT, Kernel
from tools.simulation.nft import BatchRefused, Set
from tools.simulation.packets import Packet
from tools.simulation.site import Setting, services_of
from tools.simulation.world import MILLISECOND_NS, World

SERVICES = services_of(Setting(idle_s=0.8, two_services=True))
PUBLIC, OTHER_PUBLIC = "192.0.2.2", "192.0.2.3"
HOSTS = {"192.168.1.10": "workstation-1", "192.168.1.11": "workstation-2"}
PEERS = {"203.0.113.10": "reflector", "198.51.100.20": "caller"}
PORTS = (7648, 9000, 34567)
WATCHED = ("holders", "inbound", "outbound", "pending", "refused", "hung_up")
NEAR_NS = 60 * MILLISECOND_NS
"""Whoever looks a little later than the other one must not see another thing."""
Arrived = tuple[str, str, int, int]
"""Where, from which address and port, to which port."""


class Nobody:
    """Looks on at the simulated kernel, and says nothing."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_words, **_more: None


@dataclass
class Both:
    """The two kernels, and the ends of the real one's wires."""

    lab: Lab
    rules: Ruleset
    real: Tables
    sockets: dict[tuple[str, int], socket.socket]
    world: World = field(default_factory=lambda: World(0))
    arrived: set[Arrived] = field(default_factory=set)
    epoch: int = 0

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Both begin anew, with nothing."""
        self.real.apply(
            "create table ip porthold\ndelete table ip porthold\n"
            if self.real.epoch() is None
            else "delete table ip porthold\n"
        )
        self.lab.run("gateway", ["conntrack", "-F"])
        self.model = Kernel(self.world, "gw", SERVICES, PUBLIC, Nobody())
        if not self.rules.native_queue:
            self.model.queue_rules = {
                self.rules.claim_queue: (CLAIM << MARK_SHIFT, False),
                self.rules.talk_queue: (TALK << MARK_SHIFT, True),
            }
        self.model.to_lan = self.model.to_wan = self._arrives
        self.now()

    def begin_anew(self) -> None:
        """With an empty table of the epoch that it is."""
        self.forget()
        batch = ruleset.render(self.rules, self.epoch, (), replaces=None)
        self.real.apply(batch)
        self.model.tables.apply(batch)

    def now(self) -> None:
        self.world.now_ns = time.monotonic_ns()

    def _arrives(self, packet: Packet) -> None:
        self.arrived.add((packet.destination, packet.source, packet.sport, packet.dport))

    # --- steps, in both ----------------------------------------------------------------------------------

    def apply(self, batch: str) -> None:
        refusals: list[str] = []
        self.settle()
        try:
            self.real.apply(batch)
        except KernelRefused as refused:
            refusals.append(str(refused))
        if self.stood_still():
            self.begin_anew()
            return
        try:
            self.model.tables.apply(batch)
        except BatchRefused as refused:
            refusals.append(str(refused))
        assert len(refusals) != 1, f"only one of them refused: {refusals}\n{batch[:500]}"
        self.compare(batch[:500])

    def send(self, source: str, sport: int, destination: str, dport: int, talk: int | None) -> None:
        self.settle()
        packet = Packet(source, sport, destination, dport, talk)
        self.arrived.clear()
        self.sockets[source, sport].sendto(packet.bytes()[28:], (destination, dport))
        stood_still = self.stood_still()
        if source in HOSTS:
            self.model.from_lan(packet)
        else:
            self.model.from_wan(packet)
        expected, seen = set(self.arrived), set[Arrived]()
        owners = {end: place for place, end in self.sockets.items()}
        deadline = time.monotonic() + 2
        while ready := select.select(list(owners), [], [], 2 if expected - seen else 0.01)[0]:
            for end in ready:
                address, port = owners[end]
                _, (came_from, from_port) = end.recvfrom(2048)
                seen.add((address, came_from, from_port, port))
            if time.monotonic() > deadline:
                break
        if stood_still:
            self.begin_anew()
            return
        what = f"{source}:{sport} → {destination}:{dport}, talk {talk}"
        assert seen == expected, what
        self.compare(what)

    def delete_connection(self, choose: random.Random) -> None:
        entries = sorted(self.model.entries(), key=lambda it: it.original)
        if entries:
            entry = choose.choice(entries)
            connection = parse_connection(entry.line())
            assert connection is not None
            self.lab.within("gateway", delete_connections, [connection, connection])
            self.model.delete(entry)
            self.compare(f"forgotten: {entry.line()}")

    def holds(self, service: Service, host: str, public: str) -> bool:
        """Whether anything of such a binding is there."""
        return (
            self.model.mapped(service, "inbound", public) is not None
            or self.model._set(service, "holders") is None
            or self.model._has(service, "holders", host)
        )

    def nonce(self, wanted: int) -> int:
        """Like the worker's, it is never offered twice."""
        table = self.model.tables.table
        offered = {} if table is None else table.sets["offered"].living(self.world.now_ns)
        return next(nonce for nonce in range(wanted, 1_000) if str(nonce) not in offered)

    # --- what they hold ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until nothing is about to run out."""
        self.now()
        while any(abs(at_ns - self.world.now_ns) < NEAR_NS for at_ns in self._ends()):
            time.sleep(0.005)
            self.now()

    def stood_still(self) -> bool:
        """Whether the step since `now` took so long that nobody knows when in it the real kernel did it."""
        began_ns = self.world.now_ns
        self.now()  # a whole table takes the real one some milliseconds
        return self.world.now_ns - began_ns > NEAR_NS // 2

    def _ends(self) -> Iterator[int]:
        table = self.model.tables.table
        for found in table.sets.values() if table is not None else ():
            yield from (it.expires_ns for it in found.elements.values() if it.expires_ns is not None)

    def compare(self, after: str) -> None:
        self.settle()
        assert self._connections() == {it.line().partition(" src=")[2] for it in self.model.entries()}, after
        table = self.model.tables.table
        assert self.real.epoch() == (None if table is None else table.epoch()), after
        if table is None:
            return
        fenced = ("lease", "offered") if self.rules.fenced else ()
        for name in ("alive", *fenced, *(f"{it.label}_{kind}" for it in SERVICES for kind in WATCHED)):
            self._compare_set(name, table.sets[name], after)

    def _compare_set(self, name: str, model: Set, after: str) -> None:
        began_ns = time.monotonic_ns()
        real = dict(map(_element, self.real.elements(_kind(name), name)))
        left_s = self.real.timed(name) if name.endswith(("holders", "refused", "pending")) else {}
        ended_ns = time.monotonic_ns()
        for key, it in list(model.elements.items()):
            if it.expires_ns is not None and it.expires_ns < ended_ns + NEAR_NS // 2:
                if it.expires_ns > began_ns - NEAR_NS // 2:
                    real.setdefault(key, it.value)  # it ran out while we looked
                else:
                    del model.elements[key]
        assert real == {key: it.value for key, it in model.elements.items()}, f"{name} {after}"
        for host, seconds in left_s.items():
            expires_ns = model.elements[str(host)].expires_ns
            assert expires_ns is not None
            assert began_ns - NEAR_NS < expires_ns - seconds * 1e9 < ended_ns + NEAR_NS, f"{name} {after}"

    def _connections(self) -> set[str]:
        listed = self.lab.run("gateway", ["conntrack", "-L", "-p", "udp"]).stdout.splitlines()
        return {line.partition(" src=")[2].replace("[ASSURED] ", "").strip() for line in listed}


def _kind(name: str) -> str:
    return "map" if name.endswith(("inbound", "outbound")) else "set"


def _element(found: object) -> tuple[str, str | None]:
    """Key and value of an element in nft's JSON."""
    match found:
        case [key, str(value)]:
            return _element(key)[0], value
        case {"elem": {"val": key}}:
            return _element(key)
        case {"concat": [*parts]}:
            return " . ".join(parts), None
        case _:
            return str(found), None


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    native = probing.has_native_queue()
    rules = Ruleset(("lan0",), ("wan0",), SERVICES, 0x3F000000, 100, 101, native_queue=native)
    with Lab(masquerade=False) as lab:
        tables = lab.within("gateway", Tables)
        if not native:
            lab.within("gateway", queue_rules.add_queue_rules, rules)
        sockets = {
            (address, port): lab.within(place, bound, address, port)
            for address, place in {**HOSTS, **PEERS}.items()
            for port in PORTS
        }
        try:
            yield Both(lab, rules, tables, sockets)
        finally:
            for end in sockets.values():
                end.close()


def bound(address: str, port: int) -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind((address, port))
    return end


def a_batch(both: Both, choose: random.Random) -> str:
    """Any batch that the worker could send, at any time, with any epoch near the right one."""
    service = choose.choice(SERVICES)
    host, public = choose.choice(list(HOSTS)), choose.choice((PUBLIC, PUBLIC, OTHER_PUBLIC))
    # A time of its own only for what is not there: kernels differ about changing one (`_Draft._add`).
    left_s = choose.choice((None, 0.4)) if not both.holds(service, host, public) else None
    element = Element(service.name, IPv4Address(host), IPv4Address(public), left_s)
    epoch = both.epoch if choose.random() < 0.85 else both.epoch + choose.choice((-1, 1))
    match choose.randrange(8):
        case 0:
            replaces = choose.choice((None, both.epoch, both.epoch, both.epoch))
            batch = ruleset.render(
                both.rules, both.epoch + 1, [element][: choose.randrange(2)], replaces=replaces
            )
            if (replaces is None) == (both.model.tables.table is None):
                both.epoch += 1
            return batch
        case 1 | 2 | 3:
            return ruleset.install(both.rules, epoch, element)
        case 4 | 5:
            label = service.label
            keys = [
                (f"{label}_holders", host),
                (f"{label}_inbound", public),
                (f"{label}_outbound", host),
                ("own_address", address_pair(IPv4Address(host))),
            ]
            return ruleset.withdraw(epoch, service, choose.sample(keys, choose.randrange(4)))
        case 6 if both.rules.fenced:
            nonce, lease_ms = choose.randrange(3), choose.choice((600, 1_600))
            return choose.choice(
                (
                    ruleset.offer(epoch, both.nonce(nonce), lease_ms),
                    ruleset.renew(epoch, nonce, lease_ms),
                    ruleset.renew(epoch, nonce, lease_ms),
                    ruleset.end_lease(epoch),
                )
            )
        case 6:
            return ruleset.refuse(epoch, service, IPv4Address(host))
        case _:
            return choose.choice((ruleset.keep_alive(epoch), ruleset.settle(epoch, service, element.holder)))


def a_packet(choose: random.Random) -> tuple[str, int, str, int, int | None]:
    port = choose.choice((7648, 7648, 9000))
    talk = choose.choice((None, Message.OPEN, Message.CLOSE)) if port == 7648 else None
    host, peer = choose.choice(list(HOSTS)), choose.choice(list(PEERS))
    if choose.random() < 0.55:
        return host, port, peer, port, talk
    return peer, choose.choice((port, port, 34567)), PUBLIC, port, talk


@pytest.mark.parametrize("seed", range(8))
def test_both_kernels_do_the_same(both: Both, seed: int) -> None:
    choose = random.Random(seed)
    both.rules = replace(both.rules, fenced=seed % 2 == 1)
    both.forget()
    both.epoch = 1
    both.apply(ruleset.render(both.rules, 1, (), replaces=None))
    for _ in range(40):
        match choose.randrange(12):
            case 0:
                time.sleep(choose.choice((0.1, 0.7)))
            case 1:
                both.delete_connection(choose)
            case 2 | 3 | 4 | 5:
                both.apply(a_batch(both, choose))
            case _:
                both.send(*a_packet(choose))
