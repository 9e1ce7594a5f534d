"""What must hold, whatever happens: a model of its own that looks on and compares after each step.

Rule 1: it takes nothing of the code under test but the words of records and messages; what it knows is what
is on the disk (`ledger.py`), what the kernel holds, and what really happened to packets. Rule 2: it
compares whenever one of these changes, that is after each step; what needs time is looked at twice a
second. Rule 3: it says the name of the first promise that is broken, and nothing after it. Rule 4: of two
kernels with one address, what the one without a lease holds binds nobody: it forwards nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rewriter.vocabulary import Service
from tools.simulation.ledger import TOLERANCE_NS, Bound, Ledger
from tools.simulation.netfilter import Kernel
from tools.simulation.people import CUSEEME, OPEN_EVERY_NS, Call
from tools.simulation.promises import (
    AGREES,
    ALONE,
    CONTAINED,
    DELIVERED,
    ENDS,
    FENCED,
    FORGOTTEN,
    GOES_ON,
    HOLES,
    IDLE,
    SERVED,
    SILENCE,
    SURVIVES,
    TALKING,
    VERDICTS,
)
from tools.simulation.site import Place
from tools.simulation.world import SECOND_NS, Process
from tracker.events import BindingWithdrawn, Ending
from tracker.messages import decode_body

ALIVE_NS: Final = 4 * SECOND_NS
SERVED_WITHIN_NS: Final = 3 * SECOND_NS // 2
AGREE_WITHIN_NS: Final = 4 * SECOND_NS


@dataclass
class Reference(Ledger):
    """Looks on; `calls_of`: what a workstation is about, `services` as the gateways have them."""

    services: tuple[Service, ...] = ()
    calls_of: Callable[[str, str], Iterable[Call]] = lambda _, __: ()
    power_lost_ns: dict[str, int] = field(default_factory=dict)
    _refreshed_ns: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _installed_ns: dict[int, dict[str, int]] = field(default_factory=dict)  # binding → place → when
    _removed: set[tuple[int, str]] = field(default_factory=set)
    _well_since_ns: dict[str, int] = field(default_factory=dict)
    _stray_since_ns: dict[tuple[str, str, str, str], int] = field(default_factory=dict)

    # --- what a worker says ------------------------------------------------------------------------------

    def withdrawn(self, worker: str, message: BindingWithdrawn) -> None:
        """The worker says that the kernel has nothing of it any more."""
        bound = self.ever.get(message.binding)
        kernel = self.site.place_of[worker].kernel
        table = kernel.tables.table
        if bound is None or table is None or table.epoch() != message.epoch:
            return
        service = self._service(bound.service)
        if service is None or self._others(message.binding, bound):
            return
        if kernel.mapped(service, "inbound", bound.public) == bound.holder:
            self.world.fail(CONTAINED, f"{message}, and the kernel still forwards to {bound.holder}")
        for entry in kernel.entries():
            its = bound.holder in (entry.original[0], entry.reply[0]) and kernel.service_of(entry) is service
            if its and not entry.late:  # for those there is the second purge, see `_strays`
                self.world.fail(CONTAINED, f"{message}, and conntrack has {entry.line()}")
        self._check_reason(worker, message, bound)

    def _check_reason(self, worker: str, message: BindingWithdrawn, bound: Bound) -> None:
        binding, place = message.binding, self.site.place_of[worker].name
        here_ns = self._installed_ns.get(binding, {}).get(place, 0)  # made anew, for the whole idle time
        begun_ns = max(bound.since_ns, here_ns if self._is_shared(bound.gateway) else 0)
        last_ns = self._refreshed_ns.get((place, bound.service, bound.holder), 0)
        silent_ns = self.world.now_ns - max(begun_ns, last_ns)
        match message.reason:
            case Ending.LOST if binding in self._installed_ns and (binding, place) not in self._removed:
                hurt = [it.at_ns for it in self.tampered if it.place == place]
                hurt_ns = max(*hurt, self.power_lost_ns.get(place, -1), -1)
                if hurt_ns < bound.since_ns and silent_ns < self.idle_ns - SECOND_NS:
                    self.world.fail(SURVIVES, f"{message}, and nobody had taken anything away")
            case Ending.HANG_UP if self._is_awake(message.gateway, worker):
                for call in self.calls_of(message.gateway, bound.holder):
                    answered = max(begun_ns, self.world.now_ns - SECOND_NS) < call.answered_ns
                    # What it sent before it held was dropped: of such a peer the kernel knows no talk.
                    spoken = call.sent_ns > max(begun_ns, here_ns)
                    if answered and spoken and call.port == CUSEEME:
                        self.world.fail(TALKING, f"{message}, while it talks with {call.peer}")
            # Whoever took it out, and was killed before it said so, was alone to know why.
            case Ending.IDLE if self._knows(binding, worker) and (binding, place) not in self._removed:
                if silent_ns < self.idle_ns - SECOND_NS - TOLERANCE_NS:
                    self.world.fail(IDLE, f"{message}, {silent_ns / SECOND_NS:.3f} s after a packet")
            case _:
                pass

    def _is_awake(self, gateway: str, worker: str) -> bool:
        """Whoever stood still hears of a call with its next OpenContinue."""
        process = self._unit(gateway, worker).process
        return process is not None and self.world.now_ns - process.went_on_ns > OPEN_EVERY_NS + SECOND_NS

    def _knows(self, binding: int, worker: str) -> bool:
        """Whoever takes over, or has lost its outbox, does not know what was said of it before."""
        made = self.installer.get(binding) == worker
        moved = len(self._installed_ns.get(binding, ())) > 1
        return (made or moved) and not self._lost_outboxes(worker)

    def _is_shared(self, gateway: str) -> bool:
        return len(self.site.gateways[gateway].places) > 1

    def _others(self, binding: int, bound: Bound) -> bool:
        """Whether the holder has another binding of the service."""
        return any(
            number != binding
            and (it.gateway, it.service, it.holder) == (bound.gateway, bound.service, bound.holder)
            for number, it in self.bindings.items()
        )

    # --- the kernel --------------------------------------------------------------------------------------

    def batch_applied(self, kernel: Kernel, whole: bool) -> None:
        """A worker has changed the table, or made it anew (`whole`)."""
        place = self.site.places[kernel.name]
        if whole:
            self._move(place)
        self._check_alone(place.gateway)
        self.compare(place)
        session = self.sessions.get(place.gateway)
        if session is not None and session.lost:
            self._check_kernel_lease(place.gateway, session.epoch)
        if not whole:
            if (process := self.world.running) is not None and self.site.is_fenced(process):
                self.world.fail(FENCED, f"a batch of {process.name} changed the table of another epoch")
            for binding in self._installed_ns.keys() & self.bindings.keys():
                bound = self.bindings[binding]
                there = place.name in self._installed_ns[binding]
                if bound.gateway == place.gateway and there and not self._in_kernel(bound, kernel):
                    self._removed.add((binding, place.name))

    def _move(self, place: Place) -> None:
        """A gateway's first table at another place: all its bindings are made anew in it."""
        table, session = place.kernel.tables.table, self.sessions.get(place.gateway)
        is_first = session is not None and table is not None and table.epoch() == session.epoch
        if place.gateway in self.moved and self.active(place.gateway) is place and is_first:
            self.moved.remove(place.gateway)
            for binding, bound in self.bindings.items():
                if bound.gateway == place.gateway:
                    self.moves += 1
                    self._installed_ns.get(binding, {}).pop(place.name, None)
                    self._removed.discard((binding, place.name))

    def _check_alone(self, gateway: str) -> None:
        """A batch or a packet may have made a kernel forward: no other one may for the same resource."""
        if not self._is_shared(gateway):
            return
        first, second = (it.kernel.targets() for it in self.site.gateways[gateway].places)
        for resource in sorted(first.keys() & second.keys()):
            self.world.fail(ALONE, f"both forward {resource}, to {first[resource]} and to {second[resource]}")

    def compare_all(self) -> None:
        """The log has changed."""
        for place in self.site.places.values():
            self.compare(place)

    def _binds(self, place: Place) -> bool:
        """Whether what its kernel holds has to be what the log says."""
        if not self._is_shared(place.gateway):
            return True
        table, session = place.kernel.tables.table, self.sessions.get(place.gateway)
        if table is None or session is None:
            return False
        forwards = "lease" in table.sets and table.is_leased(self.world.now_ns)
        return forwards or (self.active(place.gateway) is place and table.epoch() == session.epoch)

    def compare(self, place: Place) -> None:
        """Whatever the kernel maps, the log has given."""
        table = place.kernel.tables.table
        if table is None or not self._binds(place):
            return
        now_ns = self.world.now_ns
        for service in self.services:
            for public, element in table.sets[f"{service.label}_inbound"].living(now_ns).items():
                binding = self.held.get((place.gateway, public, service.name))
                if binding is not None and self.bindings[binding].holder == element.value:
                    self._installed_ns.setdefault(binding, {}).setdefault(place.name, now_ns)
                elif not element.ghost:
                    self.world.fail(
                        CONTAINED, f"{service.name}: the kernel forwards {public} to {element.value}"
                    )
            for host, element in table.sets[f"{service.label}_outbound"].living(now_ns).items():
                if self.holder_of(place.gateway, str(element.value), service.name) != host:
                    self.world.fail(CONTAINED, f"{service.name}: the kernel lends {element.value} to {host}")

    def _service(self, name: str) -> Service | None:
        return next((it for it in self.services if it.name == name), None)

    def let_in(self, place: str, public: str, service: str, host: str) -> None:
        """A packet to the public address has reached a workstation."""
        if not self._is_given(place, public, service, host):
            self.world.fail(CONTAINED, f"a packet to {public} ({service}) reached {host} by {place}")

    def let_out(self, place: str, public: str, service: str, host: str) -> None:
        """A workstation's packet has left under the public address, from the service's port."""
        if not self._is_given(place, public, service, host):
            self.world.fail(CONTAINED, f"a packet of {host} left as {public} ({service}) by {place}")

    def _is_given(self, name: str, public: str, service: str, host: str) -> bool:
        place = self.site.places[name]
        gateway = place.gateway
        if self._is_shared(gateway):
            if not place.kernel.is_ruled and not self._binds(place):
                return True  # somebody has taken the fence down with the rest, and a record will say so
            self._check_alone(gateway)
            (other,) = (it.kernel for it in self.site.gateways[gateway].places if it is not place)
            if (service, public) in other.targets():
                self.world.fail(ALONE, f"{name} forwards {public} ({service}), and {other.name} would")
        return self.holder_of(gateway, public, service) == host

    def refreshed(self, place: str, service: str, host: str) -> None:
        """A holder's packet has left."""
        self._refreshed_ns[place, service, host] = self.world.now_ns

    def vanished(self, place: str, service: str, host: str) -> None:
        """A holder's packet was lost because its tuple is another connection's."""
        since_ns = self._well_since_ns.get(place)
        if any(it.place == place and self.world.now_ns - it.at_ns < AGREE_WITHIN_NS for it in self.tampered):
            return  # past our rules connections were made that are forgotten now
        bound = next(
            (it for it in self.bindings.values() if (it.service, it.holder) == (service, host)), None
        )
        if bound is None or since_ns is None:
            return
        if self.world.now_ns - max(since_ns, bound.since_ns) > SERVED_WITHIN_NS:
            self.world.fail(SERVED, f"a packet of {host} ({service}) vanished: its tuple is another's")

    def overflowed(self, place: str) -> None:
        """A packet did not get into its queue."""
        self.overflows[place] = self.overflows.get(place, 0) + 1

    def queued(self, place: str, process: Process, *, talk: bool) -> None:
        """A packet waits for a worker."""
        if talk and process.stopped and self.world.now_ns - process.stopped_ns > ALIVE_NS:
            self.world.fail(GOES_ON, f"{place}: an OpenContinue waits for a worker that stands still")

    # --- what needs time ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Twice a second: where all is well for a while, kernel and log agree."""
        now_ns = self.world.now_ns
        for name, place in self.site.places.items():
            if not self.is_well(place):
                self._well_since_ns.pop(name, None)
                self._excuse(name)
            else:
                self._well_since_ns.setdefault(name, now_ns)
        for bound in self.bindings.values():
            place = self.active(bound.gateway)
            since_ns = self._well_since_ns.get(place.name)
            if since_ns is None or self._in_kernel(bound, place.kernel):
                bound.disagrees_since_ns = None
            elif bound.disagrees_since_ns is None:
                bound.disagrees_since_ns = now_ns
            elif now_ns - max(since_ns, bound.disagrees_since_ns) > AGREE_WITHIN_NS:
                self.world.fail(AGREES, f"{bound} is bound, and the kernel does not have it")
        for binding, bound in self.bindings.items():
            self._check_silence(binding, bound)
            self.operator.look(binding, self._well_since_ns.get(self.active(bound.gateway).name))
        for packet, at_ns in self.site.held_packets.items():
            waits_ns = now_ns - max(at_ns, packet.process.went_on_ns)
            if waits_ns > AGREE_WITHIN_NS and _is_running(packet.process):
                self.world.fail(
                    VERDICTS, f"{packet.packet.tuple} waits for {(now_ns - at_ns) / SECOND_NS:.1f} s"
                )
        self._look_at_strays()

    def _check_silence(self, binding: int, bound: Bound) -> None:
        place, service = self.active(bound.gateway), self._service(bound.service)
        table = place.kernel.tables.table
        if service is None or table is None or any(it.place == place.name for it in self.tampered):
            return  # what was restored has the time that it was last seen with
        element = table.sets[f"{service.label}_holders"].live(bound.holder, self.world.now_ns)
        if element is None or element.expires_ns is None or element.ghost:
            return
        last_ns = self._refreshed_ns.get((place.name, bound.service, bound.holder), 0)
        installed_ns = self._installed_ns.get(binding, {}).get(place.name, self.world.now_ns)
        due_ns = max(last_ns, installed_ns) + self.idle_ns
        if element.expires_ns - due_ns > AGREE_WITHIN_NS // 2:
            self.world.fail(
                SILENCE, f"{bound} is kept {(element.expires_ns - due_ns) / SECOND_NS:.3f} s too long"
            )

    def _look_at_strays(self) -> None:
        now_ns = self.world.now_ns
        for name, place in self.site.places.items():
            since_ns = self._well_since_ns.get(name)
            if since_ns is None or now_ns - since_ns < AGREE_WITHIN_NS:
                self._stray_since_ns = {key: at for key, at in self._stray_since_ns.items() if key[0] != name}
                continue
            strays = set(self._strays(place))
            for key in strays:
                at_ns = self._stray_since_ns.setdefault(key, now_ns)
                if now_ns - at_ns > 2 * SECOND_NS:
                    self.world.fail(key[1], f"{key[2]} {key[3]}")
            gone = [key for key in self._stray_since_ns if key[0] == name and key not in strays]
            for key in gone:
                del self._stray_since_ns[key]

    def _strays(self, place: Place) -> Iterator[tuple[str, str, str, str]]:
        """What the kernel has of hosts that hold nothing."""
        kernel, gateway = place.kernel, place.gateway
        table, now_ns = kernel.tables.table, self.world.now_ns
        holders = {(it.service, it.holder) for it in self.bindings.values() if it.gateway == gateway}
        for service in self.services if table is not None else ():
            sets = table.sets if table is not None else {}
            for host in sets[f"{service.label}_holders"].living(now_ns):
                if (service.name, host) not in holders:
                    yield kernel.name, AGREES, "stray holder", host
            for public, element in sets[f"{service.label}_inbound"].living(now_ns).items():
                if self.holder_of(gateway, public, service.name) != element.value:
                    yield kernel.name, AGREES, "stray target", f"{public} {element.value}"
        for entry in kernel.entries():
            owner = kernel.service_of(entry)
            inside = {entry.original[0], entry.reply[0]}
            if inside & kernel.strays:
                continue  # whoever let it hold by hand must forget its connections by hand
            if owner is not None and not any((owner.name, host) in holders for host in inside):
                yield kernel.name, FORGOTTEN, "conntrack has", entry.line()

    def _excuse(self, place: str) -> None:
        for it in self.tampered:
            if it.place == place and not it.reported and self.world.now_ns - it.at_ns < 3 * SECOND_NS:
                it.owed = False

    def _in_kernel(self, bound: Bound, kernel: Kernel) -> bool:
        service = self._service(bound.service)
        mapped = service is not None and kernel.mapped(service, "inbound", bound.public) == bound.holder
        return mapped and bound.public == kernel.public

    def is_settled(self, place: Place) -> bool:
        """All is well, and was at the last look: no table is being put up just now."""
        return place.name in self._well_since_ns and self.is_well(place)

    def is_well(self, place: Place) -> bool:
        """The tracker and the worker with the gateway's session run, here, and can hear each other."""
        session = self.sessions.get(place.gateway)
        if session is None or not session.open or session.lost or self.active(place.gateway) is not place:
            return False
        unit = self._unit(place.gateway, session.worker)
        tracker, worker = self.site.tracker.running, unit.running
        if tracker is None or worker is None or not _is_running(tracker) or not _is_running(worker):
            return False
        table = place.kernel.tables.table
        return (
            table is not None
            and table.epoch() == session.epoch
            and not self.site.log.full
            and self.world.now_ns >= max(self.site.log.slow_until_ns, self.site.log.busy_until_ns)
            and self.site.network.is_clear(place.host.name)
            and self.world.now_ns - self._polled_ns < SECOND_NS
        )

    # --- the end -----------------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Nobody has called for long, and nothing is broken: everything has come to its end."""
        if self.world.fault is not None:
            return
        for binding, bound in self.bindings.items():
            self.world.fail(ENDS, f"binding {binding}, {bound}")
        for gateway in self.site.gateways.values():
            for worker, disk in gateway.outboxes.items():
                if disk.connection is not None:
                    left = disk.connection.execute("SELECT sequence, message FROM messages").fetchall()
                    self._outbox_at_rest((worker, disk.incarnations[-1]), left)
            for stray in self._strays(self.active(gateway.name)):
                self.world.fail(stray[1], f"at rest: {stray[2]} {stray[3]}")
        for packet in self.site.held_packets:
            self.world.fail(VERDICTS, f"at rest: {packet.packet.tuple}")
        for it in self.tampered:
            if it.owed and not it.reported:
                self.world.fail(
                    HOLES, f"{it.place} was tampered with at {it.at_ns / SECOND_NS:.3f} s: no record"
                )

    def _outbox_at_rest(self, outbox: tuple[str, int], left: Sequence[tuple[int, bytes]]) -> None:
        for sequence, data in left:
            submitted = self.submissions.get((*outbox, sequence))
            if submitted is None or self.world.now_ns - submitted.at_ns > AGREE_WITHIN_NS:
                self.world.fail(DELIVERED, f"{outbox[0]} still has {sequence}: {decode_body(data)}")


def _is_running(process: Process | None) -> bool:
    return process is not None and process.alive and not process.stopped
