"""One run: a plan carried out, then rest, then the proof that everybody is served again.

Rule 1: the same plan gives the same run, to the last line of its story. Rule 2: a failing plan is made
smaller by leaving out what its fault does not need, and what is left is a plan again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Final

from tools.simulation.disk import LogDisk
from tools.simulation.netfilter import Kernel
from tools.simulation.operator import Operator
from tools.simulation.people import CUSEEME, PEERS, Call, Lan
from tools.simulation.plan import Plan, Step
from tools.simulation.promises import REPLAY, SERVED
from tools.simulation.reference import Reference
from tools.simulation.site import ACTIVE, STANDBY, Gateway, Place, Site, Unit, places_of, services_of
from tools.simulation.wire import Network, Weather
from tools.simulation.world import MILLISECOND_NS, SECOND_NS, Blow, Fault, Host, Moment, World
from tracker.events import from_record
from tracker.transitions import State, apply

LOOK_EVERY_NS: Final = SECOND_NS // 2
ALLOWED_AFTER_NS: Final = 4 * SECOND_NS
"""When whoever was killed last is back for certain."""
PROBE_NS: Final = 3 * SECOND_NS // 2
WAY_LATE_NS: Final = 3 * SECOND_NS // 2
"""So late at most packets are led to the gateway that has taken over."""
Damage = Callable[[], AbstractContextManager[object]]
"""What a planted bug changes, for the time of a run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; `moves`: bindings that another machine made anew."""

    plan: Plan
    fault: Fault | None
    story: tuple[Moment, ...]
    records: int
    moves: int
    steps: int

    def digest(self) -> str:
        """The same for two runs only if they were the same, line by line."""
        return sha256("\n".join(map(str, self.story)).encode()).hexdigest()


def run(plan: Plan, damage: Damage = nullcontext) -> Outcome:
    """Carry a plan out."""
    with damage():
        simulation = Simulation(plan)
        try:
            with simulation.site.system_calls():
                simulation.run()
        finally:
            simulation.close()
    world = simulation.world
    seen = simulation.reference
    return Outcome(plan, world.fault, tuple(world.story), seen.records, seen.moves, world.steps)


class Simulation:
    """All parts of a run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        setting = plan.setting
        world = self.world = World(plan.seed)
        self._ways = world.chance("ways")
        far = setting.far_tracker
        self.network = Network(world, Weather((2_000_000, 40_000_000) if far else (20_000, 400_000)))
        self.log = LogDisk(world)
        self.site = Site(world, setting, self.network, self.log)
        services = services_of(setting)
        self.reference = Reference(
            world,
            self.site,
            Operator(world, self.network),
            round(setting.lease_s * SECOND_NS),
            round(setting.idle_s * SECOND_NS),
            services=services,
        )
        self.lans: dict[str, Lan] = {}
        for number in range(1, setting.gateways + 1):
            name = f"gw{number}"
            places = [self._place(name, place) for place in places_of(setting, name)]
            self.site.add_gateway(Gateway(name, places))
            self.lans[name] = Lan(world, [place.kernel for place in places], number)
        self._set_clocks()
        self.log.appending, self.log.committed = self.reference.appending, self.reference.committed
        self.network.heard, self.network.sent = self.reference.heard, self.reference.sent
        self.reference.calls_of = lambda gateway, host: (
            call for call in self.lans[gateway].calls.values() if call.host == host
        )
        self.site.submitted = self.reference.submitted
        self.site.renamed = self.reference.renamed
        self.site.tracker_polled = self.reference.polled
        self.reference.opened = self._opened

    def _place(self, gateway: str, name: str) -> Place:
        world = self.world
        host = Host(world, name) if self.plan.setting.far_tracker else self.site.tracker_host
        late_ns = self.plan.setting.late_ms * MILLISECOND_NS
        kernel = Kernel(
            world,
            name,
            self.reference.services,
            f"203.0.113.{10 * int(gateway[2:]) + 1}",
            self.reference,
            lambda duration_ns: host.lasting_ns(duration_ns) + late_ns,
        )
        kernel.tables.changed = partial(self.reference.batch_applied, kernel)
        kernel.tables.applied = kernel.batch_applied
        return Place(gateway, host, kernel)

    def _set_clocks(self) -> None:
        setting = self.plan.setting
        hosts = dict.fromkeys((self.site.tracker_host, *(place.host for place in self.site.places.values())))
        for host, rate_ppm, offset_s in zip(hosts, setting.rates_ppm, setting.offsets_s, strict=False):
            host.rate_ppm, host.wall_error_ns = rate_ppm, offset_s * SECOND_NS

    def _opened(self, gateway: str) -> None:
        """A session has begun: what leads packets to this gateway or that one hears of it some time later."""
        if self.plan.setting.shared:
            late_ns = self._ways.randrange(WAY_LATE_NS)
            self.world.after(late_ns, partial(self._lead_to, gateway, self.reference.active(gateway)))

    def _lead_to(self, gateway: str, place: Place) -> None:
        self.lans[gateway].lead(place.kernel, place.kernel)

    def run(self) -> None:
        world = self.world
        world.after(0, partial(self.site.start, self.site.tracker))
        for index, unit in enumerate(self.site.units()[1:]):
            world.after(10_000_000 * (1 + 30 * index), partial(self.site.start, unit))
        for step in self.plan.steps:
            world.at(step.at_ns, partial(self._carry_out, step))
        world.after(LOOK_EVERY_NS, self._look)
        world.run(self.plan.rest_ns)
        self._heal()
        world.after(ALLOWED_AFTER_NS, self.reference.operator.allow_all)
        setting = self.plan.setting
        world.run(self.plan.rest_ns + round((setting.lease_s + setting.idle_s + 4) * SECOND_NS))
        self.reference.at_rest()
        for index in range(2):
            self._probe(index)
        world.run(world.now_ns + round((setting.idle_s + 2.5) * SECOND_NS))
        self.reference.at_rest()
        self._check_log()

    def close(self) -> None:
        """All processes end, and what they left."""
        for unit in self.site.units():
            unit.away_until_ns = 1 << 62
            if unit.running is not None:
                unit.running.kill()
        for gateway in self.site.gateways.values():
            for disk in gateway.outboxes.values():
                disk.close()
        self.log.remove()

    def _look(self) -> None:
        self.reference.look()
        self.world.after(LOOK_EVERY_NS, self._look)

    # --- the end -----------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.log.full = False
        self.log.busy_until_ns = self.log.slow_until_ns = 0
        self.network.weather.duplicates = 0.0
        for place in self.site.places.values():
            place.kernel.linger = 0.0
        for name, gateway in self.site.gateways.items():
            if self.plan.setting.shared:
                self._lead_to(name, self.reference.active(name))
            for disk in gateway.outboxes.values():
                disk.fill(full=False)
        for unit in self.site.units():
            if unit.running is not None:
                unit.running.ambush = None
        for lan in self.lans.values():
            lan.rest()

    def _check_log(self) -> None:
        if self.world.fault is not None:
            return
        for wrong in self.log.faults() if self.plan.setting.verified else ():
            self.world.fail(REPLAY, wrong)
        machine = self.site.machine
        if machine is None:
            raise ValueError("there never was a tracker")
        replayed = State(lease_ms=machine.state.lease_ms)
        for record in self.log.records():
            apply(replayed, from_record(record), record.wall_ns)
        if replayed != machine.state:
            self.world.fail(REPLAY, f"{replayed} is not {machine.state}")

    def _probe(self, index: int) -> None:
        """Everybody's first host, then the second one, calls and is answered."""
        if self.world.fault is not None:
            return
        calls: list[tuple[str, Call]] = []
        for name, lan in self.lans.items():
            if lan.way_in.public is not None:
                call = lan.call(lan.host(index), PEERS[0], CUSEEME, PROBE_NS, hang_up=index == 0)
                calls.append((name, call))
        self.world.run(self.world.now_ns + PROBE_NS + SECOND_NS // 2)
        for name, call in calls:
            if call.heard == 0:
                self.world.fail(SERVED, f"{name}: {call.host} called at rest, and nothing came back")

    # --- steps -------------------------------------------------------------------------------------------

    def _carry_out(self, step: Step) -> None:
        self.world.tell("plan", step.what, *step.words)
        match step.what, step.words:
            case "call", (str(gateway), int(host), str(peer), int(port), int(for_ns), bool(hang_up)):
                lan = self.lans[gateway]
                lan.call(lan.host(host), peer, port, for_ns, hang_up=hang_up, name=f"user {step.at_ns % 7}")
            case "ring", (str(gateway), str(caller), int(sport), int(times)):
                self.lans[gateway].ring(caller, sport, times)
            case "flood", (str(gateway), int(host), str(peer), int(packets)):
                lan = self.lans[gateway]
                lan.flood(lan.host(host), peer, packets)
            case "order", (str(what), str(gateway), int(index)):
                self._order(what, gateway, index)
            case (("kill" | "stop" | "ambush" | "terminate" | "take over" | "power"), _):
                self._strike(step)
            case (("flush" | "flush rules" | "flush queues" | "linger" | "stray"), (str(place), *_)):
                self._disturb_kernel(step, self.site.places[place])
            case "address", (str(name), int(last), bool(comes_back)):
                self._change_address(name, last, comes_back=comes_back)
            case "lead", (str(gateway), int(out), int(into)):
                lan = self.lans[gateway]
                lan.lead(lan.kernels[out], lan.kernels[into])
            case _:
                self._disturb(step)

    def _order(self, what: str, gateway: str, index: int) -> None:
        held = [number for number, it in self.reference.bindings.items() if it.gateway == gateway]
        host = self.lans[gateway].host(index)
        self.reference.operator.order(what, gateway, host, min(held, default=None))

    def _strike(self, step: Step) -> None:
        match step.what, step.words:
            case "kill", (str(name), int(calls), int(away_ns)):
                unit = self._unit(name)
                unit.away_until_ns = self.world.now_ns + away_ns
                self._blow(unit, Blow(calls, None))
            case "stop", (str(name), int(calls), int(for_ns)):
                self._blow(self._unit(name), Blow(calls, for_ns))
            case "ambush", (str(name), int(calls), int(for_ns)):
                process = self._unit(name).running
                if process is not None:
                    process.ambush = Blow(calls, for_ns or None)
            case "take over", (str(name),):
                unit = self._unit(name)
                if unit.running is not None:
                    unit.running.kill()
                unit.take_over = True
            case "terminate", (str(name),):
                process = self._unit(name).running
                if process is not None:
                    process.request_stop()
            case "power", (str(name), int(for_ns)):
                for place in self.site.places.values():
                    if place.host.name == name:
                        self.reference.power_lost_ns[place.name] = self.world.now_ns
                self.site.power_off(self.site.host(name), for_ns)
            case _:
                raise ValueError(step)

    def _unit(self, name: str) -> Unit:
        gateway, _, which = name.partition("-")
        if which not in (ACTIVE, STANDBY):
            return self.site.unit(name)
        session = self.reference.sessions.get(gateway)
        workers = self.site.gateways[gateway].workers
        active = workers[0].name if session is None else session.worker
        return next(unit for unit in workers if (unit.name == active) == (which == ACTIVE))

    def _blow(self, unit: Unit, blow: Blow) -> None:
        process = unit.running
        if process is None:
            return
        if blow.calls:
            process.strike(blow)
        elif blow.stop_ns is None:
            process.kill()
        else:
            process.stop(blow.stop_ns)

    def _disturb_kernel(self, step: Step, place: Place) -> None:
        kernel = place.kernel
        match step.what, step.words:
            case "flush", _ if kernel.tables.table is not None:
                self._tamper(place)
                kernel.tables.flush()
            case "flush rules", _ if kernel.tables.table is not None:
                self._tamper(place)
                kernel.tables.flush_rules()
            case "flush queues", _ if kernel.queue_rules:
                self._tamper(place)
                kernel.queue_rules.clear()
            case "stray", (_, int(index)):
                host = self.lans[place.gateway].host(index)
                holdings = ((it.gateway, it.holder) for it in self.reference.bindings.values())
                if (place.gateway, host) in holdings:
                    self.reference.tamper(place.name, owed=False)  # half of a holder's elements came back
                kernel.add_stray(host)
            case "linger", (_, int(for_ns)):
                kernel.linger = 0.5
                self.world.after(for_ns, partial(setattr, kernel, "linger", 0.0))
            case _:
                pass  # nothing is there that could be flushed

    def _tamper(self, place: Place) -> None:
        self.reference.tamper(place.name, owed=self.reference.is_settled(place))

    def _change_address(self, name: str, last: int, *, comes_back: bool) -> None:
        for kernel in self.lans[name].kernels:
            before = kernel.public
            kernel.public = f"203.0.113.{10 * int(name[2:]) + last}" if last else None
            if comes_back or last == 0:
                self.world.after(3 * SECOND_NS, partial(setattr, kernel, "public", before))

    def _disturb(self, step: Step) -> None:
        world, log = self.world, self.log
        match step.what, step.words:
            case "cut", (int(for_ns),):
                self.network.cut(for_ns)
            case "cut off", (str(name), int(for_ns)):
                self.network.cut(for_ns, name)
            case "reset", ():
                self.network.reset()
            case "duplicates", (int(for_ns),):
                self.network.weather.duplicates = 0.3
                world.after(for_ns, partial(setattr, self.network.weather, "duplicates", 0.0))
            case "log full", (int(for_ns),):
                log.full = True
                world.after(for_ns, partial(setattr, log, "full", False))
            case "log busy", (int(for_ns),):
                log.busy_until_ns = world.now_ns + for_ns
            case "log slow", (int(for_ns),):
                log.slow_until_ns = world.now_ns + for_ns
            case (("outbox lost" | "outbox full"), (str(worker), int(for_ns))):
                self._disturb_outbox(step.what, worker, for_ns)
            case "clock", (str(name), int(step_ns)):
                self.reference.clock_set = True
                self.site.host(name).wall_error_ns += step_ns
            case _:
                raise ValueError(step)

    def _disturb_outbox(self, what: str, worker: str, for_ns: int) -> None:
        unit = self._unit(worker)
        disk = next(it.outboxes[unit.name] for it in self.site.gateways.values() if unit.name in it.outboxes)
        if what == "outbox full":
            disk.fill(full=True)
            self.world.after(for_ns, partial(disk.fill, full=False))
            return
        unit.away_until_ns = self.world.now_ns + 100 * MILLISECOND_NS
        if unit.running is not None:
            unit.running.kill()
        disk.lose()


# --- smaller ----------------------------------------------------------------------------------------------


def shrink(plan: Plan, promise: str, damage: Damage = nullcontext) -> Outcome:
    """The smallest plan found, by leaving steps out, that still breaks the same promise; run once more."""
    best = run(plan, damage)
    size = max(1, len(plan.steps) // 2)
    while size:
        for smaller in _without(best.plan, size):
            outcome = run(smaller, damage)
            if outcome.fault is not None and outcome.fault.promise == promise:
                best = outcome
                break
        else:
            size //= 2
    return best


def _without(plan: Plan, size: int) -> Iterator[Plan]:
    for first in range(0, len(plan.steps), size):
        yield replace(plan, steps=plan.steps[:first] + plan.steps[first + size :])
