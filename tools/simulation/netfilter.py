"""A gateway's simulated kernel: packets through the chains, connection tracking, queues.

Rule 1: the chains are those of `rewriter/ruleset.py`, in their order (its header has the table); what they
look up are the sets that its batches have made. Rule 2: a packet that a queue holds has no entry in
conntrack until it leaves; one that lingers behind the last fence brings back what was deleted meanwhile.
Rule 3: what is seen here to go to a host, or out under a public address, is told to the reference. UDP
only.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from rewriter.cuseeme import Message
from rewriter.vocabulary import CLAIM, OPENED_INSIDE, OPENED_OUTSIDE, REFUSED, TALK, Ports, Service
from tools.simulation.nft import Set, Tables
from tools.simulation.packets import Entry, Packet, PacketQueue, Tuple, Witness
from tools.simulation.world import SECOND_NS, World

UNREPLIED_NS: Final = 30 * SECOND_NS
REPLIED_NS: Final = 120 * SECOND_NS
MARK_MASK: Final = 0x3F000000
MARK_SHIFT: Final = 24
QUEUE_LENGTH: Final = 64


class Kernel:
    """The network namespace of one gateway. `to_lan`, `to_wan`: where packets go that have come through.

    `lasting_ns`: how long a timer of it runs that is to run so long.
    """

    def __init__(  # noqa: PLR0917 - what makes a kernel
        self,
        world: World,
        name: str,
        services: tuple[Service, ...],
        public: str,
        witness: Witness,
        lasting_ns: Callable[[int], int] = lambda it: it,
    ) -> None:
        self.world = world
        self.name = name
        self.public: str | None = public
        self.services = services
        self.tables = Tables(lambda: world.now_ns, lasting_ns)
        self.queues: dict[int, PacketQueue] = {}
        self.queue_rules: dict[int, tuple[int, bool]] = {}  # iptables' rules: number → (packet mark, bypass)
        self.dropped: dict[int, int] = {}
        self.to_lan: Callable[[Packet], object] = lambda _: None
        self.to_wan: Callable[[Packet], object] = lambda _: None
        self.refused: Callable[[str], object] = lambda _: None
        self.counters: dict[str, int] = {}
        self.lingering: list[Packet] = []
        self.in_flight: list[Packet] = []
        self.strays: set[str] = set()
        self._witness = witness
        self._chance = world.chance(f"kernel {name}")
        self.linger = 0.0
        self._ports = {service.name: _numbers(service.ports()) for service in services}
        self._control = {service.name: _numbers(service.control) for service in services}
        self._entries: dict[Tuple, Entry] = {}
        self._by_mark = {
            (service.number << 2 | opened) << MARK_SHIFT: (service, opened)
            for service in services
            for opened in (OPENED_INSIDE, OPENED_OUTSIDE)
        }

    def add_stray(self, host: str) -> None:
        """Somebody adds a holder by hand."""
        found = self._set(self.services[0], "holders")
        if found is not None and found.live(host, self.world.now_ns) is None:
            found.put(host, None, self.world.now_ns).ghost = True
            self.strays.add(host)

    def power_off(self) -> None:
        """Nothing of it stays."""
        self.tables.table = None
        self.queues.clear()
        self.queue_rules.clear()
        self._entries.clear()
        self.lingering.clear()
        self.in_flight.clear()

    # --- sets, as packets see them -----------------------------------------------------------------------

    def _set(self, service: Service, kind: str) -> Set | None:
        table = self.tables.table
        return None if table is None else table.sets.get(f"{service.label}_{kind}")

    def _has(self, service: Service, kind: str, key: str) -> bool:
        found = self._set(service, kind)
        return found is not None and found.live(key, self.world.now_ns) is not None

    def mapped(self, service: Service, kind: str, key: str) -> str | None:
        found = self._set(service, kind)
        element = None if found is None else found.live(key, self.world.now_ns)
        return None if element is None else element.value

    def targets(self) -> dict[tuple[str, str], str | None]:
        """Whom it forwards callers to now: (service, public address) → host."""
        table, now_ns = self.tables.table, self.world.now_ns
        if table is None or not table.chains or not table.is_leased(now_ns):
            return {}
        return {
            (service.name, public): element.value
            for service in self.services
            for public, element in table.sets[f"{service.label}_inbound"].living(now_ns).items()
        }

    @property
    def is_ruled(self) -> bool:
        """Whether our chains are there; without them it goes on with the connections that it has."""
        return self.tables.table is not None and self.tables.table.chains

    @property
    def _leased(self) -> bool:
        """Whether a fenced table has its lease; another needs none."""
        return self.tables.table is None or self.tables.table.is_leased(self.world.now_ns)

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1

    # --- conntrack ---------------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Each connection once."""
        seen: set[int] = set()
        for entry in list(self._entries.values()):
            if entry.expires_ns <= self.world.now_ns:
                self.delete(entry)
            elif id(entry) not in seen:
                seen.add(id(entry))
                yield entry

    def delete(self, entry: Entry) -> None:
        for key in (entry.original, entry.reply):
            if self._entries.get(key) is entry:
                del self._entries[key]

    def find(self, key: Tuple) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_ns <= self.world.now_ns:
            self.delete(entry)
            return None
        return entry

    def _track(self, packet: Packet) -> None:
        entry = self.find(packet.tuple)
        if entry is None:
            s, sp, d, dp = packet.tuple
            entry = Entry(packet.tuple, (d, dp, s, sp))
        elif packet.tuple == entry.reply:
            packet.reply = entry.replied = True
        packet.entry = entry

    def _confirm(self, packet: Packet) -> bool:
        """The last thing that happens to a packet; False: its tuple is another connection's."""
        entry = _entry(packet)
        now_ns = self.world.now_ns
        if not entry.confirmed:
            there = self.find(entry.original)
            if there is not None and there.original == entry.original and there.reply == entry.reply:
                packet.entry = there  # two first packets at once: the kernel lets the second one join
                return True
            if there is not None or self.find(entry.reply) is not None:
                self._count("insert_failed")
                return False
            entry.confirmed = True
            self._entries[entry.original] = self._entries[entry.reply] = entry
        entry.expires_ns = now_ns + (REPLIED_NS if entry.replied else UNREPLIED_NS)
        return True

    # --- from the LAN ------------------------------------------------------------------------------------

    def from_lan(self, packet: Packet) -> None:
        """Prerouting and forward, up to the queues."""
        self._track(packet)
        if not self.is_ruled:
            self._leave(packet)
            return
        for service in self.services:
            if self._select_outgoing(packet, service):
                break
        else:
            self._verdict(packet)

    def _select_outgoing(self, packet: Packet, service: Service) -> bool:
        """The `select` chain for one service; whether it was the packet's."""
        holder = self._has(service, "holders", packet.source)
        mine = self.service_of(_entry(packet)) is service
        if holder and (mine or packet.dport in self._ports[service.name]):
            if service.rewrites and packet.talk is not None:
                if packet.talk == Message.CLOSE:
                    self._update(service, "hung_up", f"{packet.source} . {packet.destination}", None)
                self._talk(packet)
            else:
                self._verdict(packet)
            return True
        if packet.dport in self._control[service.name]:
            self._claim(packet, service)
            return True
        return False

    def _claim(self, packet: Packet, service: Service) -> None:
        if service.rewrites:
            if packet.talk == Message.CLOSE:
                return
            hung_up = self._has(service, "hung_up", f"{packet.source} . {packet.destination}")
            if hung_up and packet.talk != Message.OPEN:
                return
        if not self._leased or self._has(service, "refused", packet.source):
            packet.mark |= REFUSED
            self._verdict(packet)
        elif not self._has(service, "pending", packet.source):
            self._update(service, "pending", packet.source, None)
            packet.mark |= CLAIM
            self._enqueue(packet, CLAIM)

    def _talk(self, packet: Packet) -> None:
        table = self.tables.table
        if table is not None and table.sets["alive"].live("udp", self.world.now_ns) is not None:
            packet.mark |= TALK
            self._enqueue(packet, TALK)
        else:
            self._verdict(packet)

    def _update(self, service: Service, kind: str, key: str, value: str | None) -> None:
        """The rules' `update` and `add`: refresh what is there, else make it."""
        found = self._set(service, kind)
        if found is None:
            return
        element = found.live(key, self.world.now_ns)
        if element is None:
            found.put(key, value, self.world.now_ns).ghost = True
        elif kind in ("holders", "inbound", "hung_up") and element.timeout_ns is not None:
            element.expires_ns = self.world.now_ns + element.timeout_ns

    # --- queues ------------------------------------------------------------------------------------------

    def _queue_number(self, bits: int) -> tuple[int, bool] | None:
        table = self.tables.table
        if table is not None and table.queues:
            return table.queues[0 if bits == CLAIM else 1], bits == TALK
        for number, (mark, bypass) in self.queue_rules.items():
            if mark == bits << MARK_SHIFT:
                return number, bypass
        return None

    def _enqueue(self, packet: Packet, bits: int) -> None:
        packet.resume = partial(self._verdict, packet)
        rule = self._queue_number(bits)
        if rule is None:
            self._verdict(packet)
            return
        number, bypass = rule
        queue = self.queues.get(number)
        if queue is None:
            if bypass:
                self._verdict(packet)
        elif len(queue.packets) >= QUEUE_LENGTH and queue.passes_when_full:
            self._verdict(packet)
        elif len(queue.packets) >= QUEUE_LENGTH:
            self.dropped[number] = self.dropped.get(number, 0) + 1
            self._witness.overflowed(self.name)
        else:
            queue.packets.append(packet)
            queue.process.notify()
            self._witness.queued(self.name, queue.process, talk=bits == TALK)

    def _verdict(self, packet: Packet) -> None:
        """The `verdict` chain, behind the queues."""
        if self.is_ruled:
            if packet.mark & REFUSED:
                self._count("refused")
                self.refused(packet.source)
                return
            if packet.mark & CLAIM:
                return
            if packet.mark & TALK:
                self._count("talks_unread")
                self._witness.overflowed(self.name)
        packet.mark = 0
        self._leave(packet)

    # --- postrouting -------------------------------------------------------------------------------------

    def _leave(self, packet: Packet) -> None:
        """To the Internet or to the LAN: the fence, source NAT, idle times, confirmation."""
        entry = _entry(packet)
        outward = _is_outward(packet)
        if self.is_ruled and not self._passes_fence(packet, outward=outward):
            self._count("not_the_holder")
            return
        if outward and not entry.confirmed and self.is_ruled and not self._source_nat(packet, entry):
            self._count("not_the_holder")
            return
        if self.linger and self._chance.random() < 0.3:
            # On another processor, past the fence already, when the next batch comes.
            self.in_flight.append(packet)
            self.world.after(200_000, partial(self._fly_on, packet))
            return
        if self._chance.random() < self.linger:
            # Between our last hook and its confirmation: another program's queue may keep it so long.
            self.lingering.append(packet)
            self._refresh(packet)
            self._show(packet)
            self.world.after(self._chance.randrange(900_000_000), partial(self._linger_on, packet))
            return
        self._refresh(packet)
        self._show(packet)
        self._arrive(packet)

    def batch_applied(self) -> None:
        """What was in flight beside it goes on."""
        for packet in list(self.in_flight):
            self._fly_on(packet)

    def _fly_on(self, packet: Packet) -> None:
        if packet in self.in_flight:
            self.in_flight.remove(packet)
            _entry(packet).late = True
            self._refresh(packet)
            self._arrive(packet)

    def _linger_on(self, packet: Packet) -> None:
        if packet in self.lingering:
            self.lingering.remove(packet)
            gone = not _entry(packet).confirmed and self.public not in (*_entry(packet).reply, *packet.tuple)
            _entry(packet).late = True
            if not gone:  # what would come of that is a fault of its own, seen and reported
                self._arrive(packet)

    def _passes_fence(self, packet: Packet, *, outward: bool) -> bool:
        host = packet.source if outward else packet.destination
        service = self.service_of(_entry(packet))
        if service is not None and not (self._leased and self._has(service, "holders", host)):
            return False
        return not outward or all(
            (packet.dport not in self._control[it.name] or self._has(it, "holders", host))
            and (
                self._leased or packet.dport not in self._ports[it.name] or not self._has(it, "holders", host)
            )
            for it in self.services
        )

    def _source_nat(self, packet: Packet, entry: Entry) -> bool:
        """Whether the packet may leave: a holder's can't while somebody has flushed `outbound`."""
        s, sp, d, dp = entry.original
        for service in self.services:
            if s != packet.source or dp not in self._ports[service.name]:
                continue
            if self._has(service, "holders", s):
                entry.mark = (service.number << 2 | OPENED_INSIDE) << MARK_SHIFT
                public = self.mapped(service, "outbound", s)
                if public is not None:
                    entry.reply = (d, dp, public, sp)
                return public is not None
        if self.public is not None:  # the host's own masquerading, from ports that no service has
            entry.reply = (d, dp, self.public, 32768 + (int(IPv4Address(s)) * 7 + sp + dp) % 28000)
        return True

    def _refresh(self, packet: Packet) -> None:
        """The `idle` chain."""
        entry = _entry(packet)
        if not self.is_ruled or entry.mark not in self._by_mark:
            return
        service, opened = self._by_mark[entry.mark]
        if packet.reply != (opened == OPENED_OUTSIDE):
            self._add_up(f"{service.label}_received")
            return
        holder = entry.original[0] if opened == OPENED_INSIDE else entry.reply[0]
        public = entry.reply[2] if opened == OPENED_INSIDE else entry.original[2]
        self._update(service, "holders", holder, None)
        self._update(service, "inbound", public, holder)
        self._add_up(f"{service.label}_sent")
        self._witness.refreshed(self.name, service.name, holder)

    def _add_up(self, name: str) -> None:
        table = self.tables.table
        if table is not None and name in table.counters:
            table.counters[name][0] += 1
            table.counters[name][1] += 68

    def _show(self, packet: Packet) -> None:
        """To the reference: it is past our last hook."""
        entry = _entry(packet)
        found = self._by_mark.get(entry.mark)
        if found is None:
            return
        answers = entry.original if packet.reply else entry.reply
        if not _is_outward(packet):
            public = entry.reply[2] if packet.reply else entry.original[2]
            self._witness.let_in(self.name, public, found[0].name, packet.destination)
        elif entry.confirmed and self.find(entry.original) is not entry:
            self._count(
                "stragglers"
            )  # its connection was deleted while a queue held it; the host holds again
        elif answers[2] != packet.source:
            self._witness.let_out(self.name, answers[2], found[0].name, packet.source)

    def _arrive(self, packet: Packet) -> None:
        entry = _entry(packet)
        found = self._by_mark.get(entry.mark)
        if not self._confirm(packet):
            if found is not None:
                host = entry.original[0] if found[1] == OPENED_INSIDE else entry.reply[0]
                self._witness.vanished(self.name, found[0].name, host)
            return
        if _is_outward(packet):
            # Seen from outside it comes from where its answers go to.
            answers = entry.original if packet.reply else entry.reply
            source = (answers[2], answers[3])
            self.to_wan(Packet(*source, packet.destination, packet.dport, packet.talk, packet.user_name))
        else:
            self.to_lan(Packet(packet.source, packet.sport, packet.destination, packet.dport, packet.talk))

    # --- from the Internet -------------------------------------------------------------------------------

    def from_wan(self, packet: Packet) -> None:
        """Prerouting: back through what is known, or to the holder, or to nobody."""
        if packet.destination != self.public:
            return
        self._track(packet)
        entry = _entry(packet)
        if not entry.confirmed and self.is_ruled and not self._destination_nat(packet, entry):
            return
        inner = (
            entry.original
            if packet.reply
            else (entry.reply[2], entry.reply[3], entry.reply[0], entry.reply[1])
        )
        host, port = (inner[0], inner[1]) if packet.reply else (inner[2], inner[3])
        if host == self.public:
            self._confirm(packet)  # the gateway's own: nobody listens, but an entry there is
            return
        packet.destination, packet.dport = host, port
        service = self.service_of(_entry(packet))
        is_talk = packet.talk is not None and service is not None and service.rewrites
        if is_talk and service is not None and self.is_ruled and self._has(service, "holders", host):
            self._talk(packet)
        else:
            self._verdict(packet)

    def _destination_nat(self, packet: Packet, entry: Entry) -> bool:
        """The `nat_arriving` chain; whether the packet goes on."""
        for service in self.services:
            if packet.dport not in self._ports[service.name]:
                continue
            host = self.mapped(service, "inbound", packet.destination)
            if host is not None:
                if not self._leased:
                    return False
                entry.mark = (service.number << 2 | OPENED_OUTSIDE) << MARK_SHIFT
                entry.reply = (host, packet.dport, packet.source, packet.sport)
                return True
        return True

    def service_of(self, entry: Entry) -> Service | None:
        """Which service's connection it is."""
        found = self._by_mark.get(entry.mark)
        return None if found is None else found[0]


def _entry(packet: Packet) -> Entry:
    if packet.entry is None:
        raise ValueError("a packet that nothing tracks")
    return packet.entry


def _is_outward(packet: Packet) -> bool:
    return not packet.destination.startswith("192.168.")


def _numbers(ports: Iterable[Ports]) -> frozenset[int]:
    found: set[int] = set()
    for span in ports:
        if span.protocol == "udp":
            found.update(range(span.first, span.last + 1))
    return frozenset(found)
