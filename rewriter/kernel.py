"""A gateway's kernel: what the worker's effects do to nftables, conntrack, queues and routes.

Rule 1: everything that touches the kernel is here and in the modules that this one stands on (`tables.py`,
  `queues.py`, `queue_rules.py`, `connections.py`, `passing.py`); what it is told is text from `ruleset.py`.
Rule 2: our table is only ever changed by batches that the epoch element guards; foreign tables never, but for
  one tagged NFQUEUE rule per queue in mangle FORWARD where the kernel lacks nft's own `queue`.
Rule 3: a batch the kernel refuses raises `KernelRefused` with the kernel's words; nothing of it took effect.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import chain

from rewriter import passing, ruleset
from rewriter.belonging import claimed, former, is_between, is_in_the_way, is_of
from rewriter.command import KernelRefused, run
from rewriter.connections import Connection, connections, delete_connections
from rewriter.effects import Carried, KernelView
from rewriter.phrases import address_pair
from rewriter.queue_rules import add_queue_rules, queue_rules_present, remove_queue_rules
from rewriter.queues import queue_drops
from rewriter.sets import Remembered, counter_names, remembered_sets
from rewriter.tables import Tables
from rewriter.vocabulary import (
    Element,
    Key,
    Ruleset,
    Service,
    element_of,
    host_of,
    key_of,
    key_text,
    numbered,
    peer_of,
)
from tracker.instant import Instant

SIOCGIFADDR = 0x8915  # include/uapi/linux/sockios.h
REMOVAL_ATTEMPTS = 5
SET_FULL = os.strerror(errno.ENFILE)


class GatewayKernel:
    """What the worker's effects do to the kernel."""

    def __init__(self, rules_for: Callable[[int], Ruleset], clock: Callable[[], Instant]) -> None:
        self._rules_for = rules_for
        self._clock = clock
        self.tables = Tables()
        self.epoch: int | None = None
        self.rules: Ruleset = rules_for(0)
        self._loaded: dict[str, str | None] = {}

    def adopt(
        self, epoch: int, wanted: Iterable[tuple[int, Element]], moved_epoch: int = 0
    ) -> tuple[list[int], int | None]:
        """Replace whatever table stands by this epoch's, keeping the wanted bindings that the kernel holds.

        In place of a table older than `moved_epoch` all of them are made, with their whole idle time.
        Returns the bindings kept and the epoch of the table before, if there was one. Calls in progress are
        not touched: the replacement is one transaction, and connections live in conntrack. Idle times go on
        where they were, but for the time in which nft loads the table: so much later they end (about 10 ms;
        nobody can know before how long it will take, and earlier than due would end a call). Where the idle
        time itself is another now, what was silent stays so for as long as it was.
        """
        before = self.tables.epoch()
        if before is not None and before != self.epoch and before >= epoch:
            raise KernelRefused(
                f"the table here is of epoch {before}, not ours, and {epoch} was granted: another worker"
                " took over; or the tracker's log was replaced, then: nft delete table ip porthold"
            )
        rules = self._rules_for(epoch)
        if before is not None:
            rules = replace(rules, services=numbered(rules.services, self.tables.numbers(rules.services)))
        found = list(wanted) if (before or 0) < moved_epoch else self._found(wanted, rules)
        kept = [binding for binding, _ in found]
        elements = [element for _, element in found]
        was_passing = self.tables.chain("passing") is not None
        is_ours = before is not None and before >= moved_epoch
        remembered = self._remembered(rules) if is_ours else Remembered()
        self.tables.apply(ruleset.render(rules, epoch, elements, replaces=before, remembered=remembered))
        self.epoch, self.rules = epoch, rules
        self._loaded = self._chains()
        self._route(elements, was_passing=was_passing)
        self.ensure_queueing()
        remove_queue_rules(keep=() if rules.native_queue else (rules.claim_queue, rules.talk_queue))
        self._forget_former(elements)
        for service in rules.services:
            here = [e for e in elements if e.service == service.name]
            # Peers went on sending while nobody held, or nobody came to the end of an installation.
            self._forget_claimed_tuples(service, here)
        return kept, before

    def _found(self, wanted: Iterable[tuple[int, Element]], rules: Ruleset) -> list[tuple[int, Element]]:
        """Those that the kernel holds, with the idle time that is left now by the new rules."""
        idle_s = {service.name: service.idle_s for service in self.rules.services}
        seen: list[tuple[int, Element, int]] = []
        for binding, element in wanted:
            looked_ns = self._clock().monotonic_ns
            service = rules.service(element.service)
            left_s = self._left_s(element, service)
            if left_s is not None:
                left_s += service.idle_s - idle_s.get(service.name, service.idle_s)
                seen.append((binding, element, looked_ns + round(left_s * 1e9)))
        now_ns = self._clock().monotonic_ns
        return [
            (binding, replace(element, left_s=(expires_ns - now_ns) / 1e9))
            for binding, element, expires_ns in seen
            if expires_ns > now_ns  # else it has run out meanwhile
        ]

    def _remembered(self, rules: Ruleset) -> Remembered:
        """What packets have written into the table that stands and that is to outlast it."""
        sets: dict[str, dict[str, float]] = {}
        for name in chain.from_iterable(map(remembered_sets, rules.services)):
            try:
                sets[name] = self.tables.remaining(name)
            except KernelRefused:
                continue
        return Remembered(sets, self.tables.counters())

    def stand_in(self, epoch: int) -> None:
        """Serve what stands there, of this epoch, until the tracker has granted one of our own.

        The table is loaded anew: the one there may be from another configuration, or in somebody's pieces.
        """
        self.epoch = epoch
        self.adopt(epoch, enumerate(self.standing_elements()))

    def standing_elements(self) -> Iterator[Element]:
        """What a table that stands there holds of our services, whatever configuration it is from."""
        for service in self.rules.services:
            try:
                holders = self._holders(service)
            except KernelRefused:
                continue  # it does not know this service
            for key, public in holders.items():
                yield element_of(service.name, key, public)

    def _left_s(self, element: Element, service: Service) -> float | None:
        try:
            left_s = self.tables.timed(f"{service.label}_holders").get(element.held_by)
            public = self.tables.mapped(f"{service.label}_outbound").get(element.held_by)
        except KernelRefused:
            return None
        return left_s if public == element.public else None

    def ensure_queueing(self) -> None:
        if not self.rules.native_queue:
            add_queue_rules(self.rules)

    def _epoch(self) -> int:
        if self.epoch is None:
            raise KernelRefused("no table of ours is loaded")
        return self.epoch

    def install(self, element: Element) -> None:
        """Give the port; connections from before that would get in its way are forgotten."""
        service = self.rules.service(element.service)
        self._forget(service, lambda connection: is_in_the_way(element, connection))
        self._remove(element, anyone=True)  # a packet's refresh can bring back what was just deleted
        if self.tables.epoch() != self.epoch:
            raise KernelRefused("the table is another worker's: its counters are not ours to begin anew")
        for name in counter_names(service):  # before the first packet that is this holder's
            self.tables.reset_counter(name)
        if service.passthrough:
            self._route([element])
        self.tables.apply(ruleset.install(self.rules, self._epoch(), element))
        self.settle(element.service, element.held_by)
        # Behind the batch: a peer that goes on sending makes a connection to nobody with each packet that
        # comes before it, and that one keeps the tuple: the new holder's packets would vanish.
        self._forget_claimed_tuples(service, [element])

    def withdraw(self, element: Element, *, taken_over: bool = False) -> Carried:
        """Take the port and forget its connections; what it had carried.

        Raises KernelRefused when the table is not this epoch's, or is flushed, at any moment of it.
        """
        self._remove(element, always=True, to_anybody=not taken_over)
        if self.rules.service(element.service).passthrough:
            self._route([*self.standing_elements()])
        self.purge(element)
        return self._carried(self.rules.service(element.service))

    def purge(self, element: Element) -> None:
        """Forget the connections of a former holder, and elements that a late packet refreshed."""
        self._remove(element)
        service = self.rules.service(element.service)
        self._forget(service, lambda connection: is_of(element, connection))

    def _route(self, elements: Sequence[Element], *, was_passing: bool = False) -> None:
        """Route the public address to whoever of these carries it itself; where nobody does, as ever."""
        passed = [element for element in elements if self.rules.service(element.service).passthrough]
        if passed:
            passing.set_up(run, self.rules, passed[0].public, passed[0].holder)
        elif was_passing or any(service.passthrough for service in self.rules.services):
            passing.take_down(run, self.rules)

    def _is_routed(self, elements: Iterable[Element]) -> bool:
        """Whether nobody has touched what `_route` did for these."""
        passed = [element for element in elements if self.rules.service(element.service).passthrough]
        try:
            return not passed or passing.stands(run, self.rules, passed[0].public, passed[0].holder)
        except KernelRefused:
            return False

    def _remove(
        self, element: Element, *, anyone: bool = False, always: bool = False, to_anybody: bool = False
    ) -> None:
        """Take a binding's elements out; `always`: empty `refused` even where nothing stands any more."""
        service = self.rules.service(element.service)
        for attempt in range(REMOVAL_ATTEMPTS):
            standing = self._standing(element, anyone=anyone)
            if not standing and not always:
                return
            try:
                batch = ruleset.withdraw(self._epoch(), service, standing, to_anybody=to_anybody)
                self.tables.apply(batch)
            except KernelRefused:
                # Between look and removal an element may run out by itself, and the batch fails whole.
                if self.tables.epoch() != self.epoch or attempt + 1 == REMOVAL_ATTEMPTS:
                    raise
            else:
                return

    def _standing(self, element: Element, *, anyone: bool = False) -> list[tuple[str, str]]:
        """(set, key) of what the kernel holds of a binding; `anyone`: of its public address at all."""
        label = self.rules.service(element.service).label
        inbound = self.tables.mapped(f"{label}_inbound")
        outbound = self.tables.mapped(f"{label}_outbound")
        holders = {element.held_by}
        if anyone:
            found_there = inbound.get(element.held_at)
            holders |= {
                key
                for key, public in outbound.items()
                if public == element.public and (element.peer is None or key == (found_there, element.peer))
            }
        timed = self.tables.timed(f"{label}_holders")
        found = [(f"{label}_holders", key_text(key)) for key in timed if key in holders]
        found += [(f"{label}_outbound", key_text(key)) for key in outbound if key in holders]
        found += [
            (f"{label}_inbound", key_text(key))
            for key, host in inbound.items()
            if key_of(host, peer_of(key)) in holders or (anyone and key == element.held_at)
        ]
        others = {
            host_of(key)
            for other in self.rules.services
            for key in self._holders(other)
            if other.label != label or key not in holders
        }
        own = self.tables.pairs("own_address")
        gone = {host_of(key) for key in holders} - others
        found += [("own_address", address_pair(host)) for host in gone if host in own]
        return found

    def _holders(self, service: Service) -> dict[Key, IPv4Address]:
        return self.tables.mapped(f"{service.label}_outbound")

    def _carried(self, service: Service) -> Carried:
        if service.per_peer:
            return Carried()  # its counters are those of all its holders
        counters = self.tables.counters()
        if self.tables.epoch() != self.epoch:  # asked for behind them: an epoch does not come back
            raise KernelRefused("the counters are another table's: they began anew")
        sent, received, callers = (counters.get(name, (0, 0)) for name in counter_names(service))
        return Carried(sent[0] + received[0], sent[1] + received[1], callers[0])

    def refuse(self, service: str, host: Key) -> None:
        """Answer a host from the kernel; where a flood has filled the sets it waits as `pending` instead."""
        self._apply_unless_full(ruleset.refuse(self._epoch(), self.rules.service(service), host))

    def settle(self, service: str, host: Key) -> None:
        """The host's claim is over. It stands in no set that is too full to name it in."""
        self._apply_unless_full(ruleset.settle(self._epoch(), self.rules.service(service), host))

    def _apply_unless_full(self, batch: str) -> None:
        """A batch that adds elements to sets which others can fill, and that may as well be left out."""
        try:
            self.tables.apply(batch)
        except KernelRefused as refusal:
            if self.tables.epoch() != self.epoch or SET_FULL not in str(refusal):
                raise

    def _chains(self) -> dict[str, str | None]:
        passing = ["passing"] if any(service.passthrough for service in self.rules.services) else []
        return {name: self.tables.chain(name) for name in (*passing, *ruleset.HOOKED_CHAINS)}

    def is_intact(self) -> bool:
        """Whether the chains at the hooks are those that were loaded; `nft flush table` leaves the sets."""
        return self._chains() == self._loaded

    def is_flushed(self) -> bool:
        """Whether our table was there and somebody removed it."""
        return self.epoch is not None and self.tables.epoch() is None

    def other_reader(self, epochs: Iterable[int], own: Container[int] = ()) -> int | None:
        """The first of these epochs whose claims another process reads here; `own`: the queues we read.

        It outlasts the table: a queue ends with its reader, not with a flush.
        """
        read = queue_drops()
        numbers = ((epoch, self._rules_for(epoch).claim_queue) for epoch in epochs)
        return next((epoch for epoch, number in numbers if number in read and number not in own), None)

    def offer(self, nonce: int, lease_ms: int) -> None:
        self.tables.apply(ruleset.offer(self._epoch(), nonce, lease_ms))

    def renew(self, nonce: int, lease_ms: int) -> None:
        """Take the acknowledgement of heartbeat `nonce` for a lease, unless its offer has run out."""
        try:
            self.tables.apply(ruleset.renew(self._epoch(), nonce, lease_ms))
        except KernelRefused:
            if self.tables.epoch() != self.epoch:
                raise

    def end_lease(self) -> None:
        """Nothing is forwarded any more for our epoch; a table of another one, or none, does so anyway."""
        try:
            self.tables.apply(ruleset.end_lease(self._epoch()))
        except KernelRefused:
            if self.tables.epoch() == self.epoch:
                raise

    def keep_alive(self) -> None:
        self.tables.apply(ruleset.keep_alive(self._epoch()))

    def remove_stray(self, service: str, holder: Key | None, public: Key | None) -> None:
        """Remove elements that no binding stands behind."""
        found = self.rules.service(service)
        remove = [] if holder is None else [(f"{found.label}_holders", key_text(holder))]
        remove += [] if public is None else [(f"{found.label}_inbound", key_text(public))]
        try:
            self.tables.apply(ruleset.withdraw(self._epoch(), found, remove))
        except KernelRefused:
            if self.tables.epoch() != self.epoch:
                raise
            return  # it ran out by itself; whatever still stands is seen again at the next look
        if holder is not None:
            host, peer = host_of(holder), peer_of(holder)
            self._forget(found, lambda connection: is_between(host, peer, connection))

    def restore(self, elements: Sequence[Element]) -> None:
        """Bring back what somebody flushed. Connections made meanwhile past our rules are forgotten."""
        standing = self.tables.epoch()
        if standing not in (None, self._epoch()):
            raise KernelRefused(f"the table is of epoch {standing}, ours is {self._epoch()}")
        if standing is None or not self.is_intact():
            remembered = Remembered() if standing is None else self._remembered(self.rules)
            batch = ruleset.render(
                self.rules, self._epoch(), elements, replaces=standing, remembered=remembered
            )
            self.tables.apply(batch)
            self._loaded = self._chains()
            for service in self.rules.services:
                self._forget_claimed_tuples(service, [e for e in elements if e.service == service.name])
        else:
            for element in elements:
                self._remove(element)
                self.tables.apply(ruleset.install(self.rules, self._epoch(), element))
                # Who rang while it was gone has a connection to nobody.
                self._forget_claimed_tuples(self.rules.service(element.service), [element])
        self._route([*self.standing_elements()])
        self.ensure_queueing()

    def live_peers(self, element: Element) -> set[IPv4Address]:
        """The peers that the holder's connections of the service reach and that have answered."""
        service = self.rules.service(element.service)
        live: set[IPv4Address] = set()
        for connection in self._marked(service):
            if connection.replied and is_of(element, connection):
                opened_inside = connection.original[0] == element.holder
                live.add(connection.original[1] if opened_inside else connection.original[0])
        return live

    def view(self, public: IPv4Address | None) -> KernelView:
        """What the kernel holds now."""
        epoch = self.tables.epoch()
        if epoch is not None and (epoch != self.epoch or self.is_intact()):
            try:
                return self._view(epoch, public)
            except KernelRefused:
                if self.tables.epoch() is not None:
                    raise  # else it was flushed while we looked
        return KernelView(None, {}, {}, {}, queueing=False, public=public)

    def _view(self, epoch: int, public: IPv4Address | None) -> KernelView:
        holders: dict[tuple[str, Key], float] = {}
        inbound: dict[tuple[str, Key], IPv4Address] = {}
        outbound: dict[tuple[str, Key], IPv4Address] = {}
        for service in self.rules.services:
            for host, left_s in self.tables.timed(f"{service.label}_holders").items():
                holders[service.name, host] = left_s
            for address, host in self.tables.mapped(f"{service.label}_inbound").items():
                inbound[service.name, address] = host
            for host, address in self.tables.mapped(f"{service.label}_outbound").items():
                outbound[service.name, host] = address
        wanted = {self.rules.claim_queue, self.rules.talk_queue}
        queueing = self.rules.native_queue or wanted <= queue_rules_present()
        drops = queue_drops()
        unread, _ = self.tables.counters().get("talks_unread", (0, 0))
        dropped = {
            "claims": drops.get(self.rules.claim_queue, 0),
            "talks": drops.get(self.rules.talk_queue, 0) + unread,
        }
        standing = (
            element_of(service, key, address)
            for (service, key), address in outbound.items()
            if (service, key) in holders
        )
        routed = self._is_routed(standing)
        return KernelView(epoch, holders, inbound, outbound, queueing, public, dropped, routed)

    def _marked(self, service: Service) -> Iterator[Connection]:
        """Whoever opened them."""
        mark, mask = self.rules.connection_mark(service, 0), self.rules.mark_mask
        of_service = mask & ~(mask & -mask) & ~((mask & -mask) << 1)
        yield from connections("-m", f"{mark:#x}/{of_service:#x}")

    def _forget(self, service: Service, which: Callable[[Connection], bool]) -> None:
        delete_connections(filter(which, self._marked(service)))

    def _forget_former(self, elements: Sequence[Element]) -> None:
        """Connections that no service of ours, or none of these holders, has any more."""
        delete_connections(former(connections(), self.rules, elements))

    def _forget_claimed_tuples(self, service: Service, elements: Sequence[Element]) -> None:
        """Entries that aren't the service's own but have its public ports, or go to them."""
        if elements:
            unmarked = connections("-m", f"0/{self.rules.mark_mask:#x}")
            delete_connections(claimed(unmarked, service, elements))


def address_of(interface: str) -> IPv4Address | None:
    """The first IPv4 address of an interface; None when it has none, or isn't there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return IPv4Address(answer[20:24])
