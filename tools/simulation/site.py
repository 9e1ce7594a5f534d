"""What runs where: the real loops of tracker and workers, with simulated system calls put under them.

Rule 1: what a module of ours takes from outside (clock, ZeroMQ, nft, conntrack, queues, files) is replaced
in that module, by name, for the time of a run; everything between is real. Rule 2: whoever ends is started
again, as systemd would, unless it was told to stay away.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from ipaddress import IPv4Address
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import tracker.client
import tracker.server
from eventlog.store import AppendFailed
from rewriter import connections, kernel, probing, queue_rules, service, upcalls
from rewriter.command import KernelRefused
from rewriter.configuration import GatewayFile, kernel_services
from rewriter.connections import Connection
from rewriter.queues import QueueBusy
from rewriter.service import Worker, WorkerStopped
from tools.simulation.disk import LogDisk, OutboxDisk, SimulatedOutbox
from tools.simulation.netfilter import Kernel
from tools.simulation.syscalls import (
    COMMAND_NS,
    Held,
    SimulatedQueue,
    SimulatedSupervision,
    SimulatedTables,
    conntrack,
    delete_connections,
    iptables,
    replaced,
)
from tools.simulation.wire import IdlePorter, Network, RouterSocket, SimulatedZmq
from tools.simulation.world import MILLISECOND_NS, Host, Process, World
from tracker.client import OutboxLocked
from tracker.configuration import TrackerSection
from tracker.doors import Door
from tracker.exposition import Exposition
from tracker.instant import Instant
from tracker.machine import Machine
from tracker.roles import Role
from tracker.transitions import State

ACTIVE: Final = "active"
STANDBY: Final = "standby"
"""In a worker's name: whichever of the two that is when it is named."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What does not change in a run."""

    gateways: int = 1
    standbys: bool = False
    far_tracker: bool = False
    native_queue: bool = True
    two_services: bool = False
    lease_s: float = 3.0
    idle_s: float = 5.0
    outbox_limit: int = 10_000
    verified: bool = False
    refusal: str = "icmp"
    fenced: bool = False
    shared: bool = False
    """Its two workers are on two machines, each with a kernel of its own, under one address."""
    rates_ppm: tuple[int, int, int] = (0, 0, 0)
    """How much too fast the clocks of the tracker's machine and of those two are."""
    offsets_s: tuple[int, int, int] = (0, 0, 0)
    """By how much they are wrong at the beginning."""
    late_ms: int = 0
    """So late a kernel's timers run out."""


@dataclass(eq=False, slots=True)
class Unit:
    """A process that is to run: who it is, and the process that it is now."""

    name: str
    host: Host
    main: Callable[[Process], None]
    process: Process | None = None
    away_until_ns: int = 0
    take_over: bool = False

    @property
    def running(self) -> Process | None:
        return self.process if self.process is not None and self.process.alive else None


@dataclass(eq=False, slots=True)
class Place:
    """Where a gateway can be served: a machine and its kernel."""

    gateway: str
    host: Host
    kernel: Kernel

    @property
    def name(self) -> str:
        return self.kernel.name


@dataclass(eq=False)
class Gateway:
    """One gateway: its places (two under one address, or one), and its workers."""

    name: str
    places: list[Place]
    workers: list[Unit] = field(default_factory=list)
    outboxes: dict[str, OutboxDisk] = field(default_factory=dict)


class Site:
    """All hosts and processes of a run."""

    def __init__(self, world: World, setting: Setting, network: Network, log: LogDisk) -> None:
        self.world = world
        self.setting = setting
        self.network = network
        self.log = log
        self.tracker_host = Host(world, "hub")
        self.gateways: dict[str, Gateway] = {}
        self.places: dict[str, Place] = {}
        self.place_of: dict[str, Place] = {}  # worker →
        self.machine: Machine | None = None
        self.tracker = Unit("tracker", self.tracker_host, self._run_tracker)
        self.kernel_of: dict[Process, Kernel] = {}
        self.held_packets: Held = {}
        self.workers: dict[Process, Worker] = {}
        self.submitted: Callable[[str, SimulatedOutbox, int, Sequence[bytes]], object] = lambda *_: None
        self.renamed: Callable[[str, int, int], object] = lambda *_: None
        self.tracker_polled: Callable[[Process], object] = lambda _: None
        self._chance = world.chance("supervisor")
        self._nonces = world.chance("nonces")
        self._descriptors = 10

    def add_gateway(self, gateway: Gateway) -> None:
        self.gateways[gateway.name] = gateway
        self.places |= {place.name: place for place in gateway.places}
        letters = "ab" if self.setting.standbys else "a"
        for letter, place in zip(letters, cycle(gateway.places), strict=False):
            name = f"{gateway.name}-{letter}"
            gateway.outboxes[name] = OutboxDisk(self.setting.outbox_limit)
            unit = Unit(name, place.host, lambda _: None)
            unit.main = partial(self._run_worker, place, unit)
            gateway.workers.append(unit)
            self.place_of[name] = place

    def units(self) -> list[Unit]:
        return [self.tracker, *(unit for gateway in self.gateways.values() for unit in gateway.workers)]

    def unit(self, name: str) -> Unit:
        return next(unit for unit in self.units() if unit.name == name)

    def host(self, name: str) -> Host:
        return next(unit.host for unit in self.units() if unit.host.name == name)

    # --- starting and ending -----------------------------------------------------------------------------

    def start(self, unit: Unit) -> None:
        """Start it, unless it runs or is to stay away for a while."""
        if unit.running is not None:
            return
        if self.world.now_ns < unit.away_until_ns:
            self.world.at(unit.away_until_ns, lambda: self.start(unit))
            return
        process = Process(
            self.world, unit.host, unit.name, lambda: unit.main(process), lambda _: self._ended(unit)
        )
        unit.process = process
        self.world.tell(unit.name, "starts")
        process.start()

    def _ended(self, unit: Unit) -> None:
        process = unit.process
        if process is None:
            return
        error = process.error
        self.world.tell(unit.name, "ends", "" if error is None else repr(error))
        if error is not None and not self._may_end_by(unit, error):
            self.world.fail("no process ends by a mistake", _where(unit.name, error))
        pause_ns = self._chance.randrange(200, 2_000) * MILLISECOND_NS
        self.world.after(pause_ns, lambda: self.start(unit))

    def _may_end_by(self, unit: Unit, error: BaseException) -> bool:
        match error:
            case AppendFailed() | WorkerStopped() | OutboxLocked() | QueueBusy():
                return True
            case KernelRefused():
                return unit.process is not None and self.is_fenced(unit.process)
            case _:
                return False

    def is_fenced(self, process: Process) -> bool:
        """Whether another epoch stands in the kernel than this worker's, or none any more."""
        worker, namespace = self.workers.get(process), self.kernel_of[process]
        table = namespace.tables.table
        if worker is None:
            return False
        believed = worker._kernel.epoch  # noqa: SLF001 - what it goes by; nobody else is ever told
        return table is None or table.epoch() != believed

    def power_off(self, host: Host, for_ns: int) -> None:
        """The host's processes, kernels and unsynced writes are gone; it comes up again later."""
        self.world.tell(host.name, "loses power")
        for unit in self.units():
            if unit.host is host:
                unit.away_until_ns = self.world.now_ns + for_ns
                if unit.process is not None:
                    unit.process.kill()
        for place in self.places.values():
            if place.host is host:
                place.kernel.power_off()
        host.reboot()

    # --- the processes -----------------------------------------------------------------------------------

    def _run_tracker(self, process: Process) -> None:
        process.polled = partial(self.tracker_polled, process)
        section = TrackerSection(lease_s=self.setting.lease_s, alive_s=2.0, log=self.log.path)
        tracker.server.serve(section, SimulatedSupervision(process), lambda: section)

    def _machine(self, state: State, **rest: Any) -> Machine:  # noqa: ANN401 - as the real one has them
        self.machine = Machine(state, **rest)
        return self.machine

    @contextmanager
    def _doors(
        self, _context: object, section: TrackerSection, _porter: object, _keyring: object
    ) -> Iterator[list[Door]]:
        process = self.world.process
        doors = []
        for role in Role:
            socket: Any = RouterSocket(self.network, process, section.local_socket(role).endpoint)
            doors.append(Door(socket, role))
        yield doors

    def _run_worker(self, place: Place, unit: Unit, process: Process) -> None:
        self.kernel_of[process] = place.kernel
        file = gateway_file(place.gateway, unit.name, self.setting)
        take_over, unit.take_over = unit.take_over, False
        worker = self.workers[process] = Worker(file, take_over=take_over)
        worker.run(SimulatedSupervision(process), lambda: file, Exposition())

    # --- system calls ------------------------------------------------------------------------------------

    @contextmanager
    def system_calls(self) -> Iterator[None]:
        """Ours in the place of the operating system's, for the time of a run."""
        zmq = SimulatedZmq(self.network)
        calls: dict[object, dict[str, object]] = {
            tracker.server: {
                "read_clock": self._read_clock,
                "zmq": zmq,
                "boot_identity": self._identity,
                "Log": self.log.opened,
                "Machine": self._machine,
                "opened_doors": self._doors,
                "Porter": lambda *_: IdlePorter(),
                "version": lambda _: "simulated",
                "secrets": self,
            },
            tracker.client: {"zmq": zmq, "Outbox": self},
            service: {
                "read_clock": self._read_clock,
                "zmq": zmq,
                "host_identity": self._identity,
            },
            upcalls: {"Queue": self._queue},
            kernel: {
                "Tables": lambda: SimulatedTables(self.world.process, self._kernel().tables),
                "run": self._run,
                "address_of": self._address_of,
                "queue_drops": self._queue_drops,
                "delete_connections": self._delete_connections,
            },
            connections: {"run": self._run},
            queue_rules: {"run": self._run},
            probing: {"run": self._run},
        }
        logging.disable(logging.CRITICAL)
        with ExitStack() as stack:
            stack.callback(logging.disable, logging.NOTSET)
            for module, names in calls.items():
                stack.enter_context(replaced(module, names))
            yield

    def token_bytes(self, size: int) -> bytes:
        """secrets.token_bytes."""
        return self._nonces.randbytes(size)

    def _queue_drops(self) -> dict[int, int]:
        kernel = self._kernel()
        return {number: kernel.dropped.get(number, 0) for number in kernel.queues}

    def _kernel(self) -> Kernel:
        return self.kernel_of[self.world.process]

    def _read_clock(self) -> Instant:
        return self.world.process.host.clock()

    def _identity(self) -> str:
        host = self.world.process.host
        return f"{host.name}/{host.boots}/1"

    def open(self, path: Path, *, worker: str, now_ns: int, limit: int) -> SimulatedOutbox:
        """Outbox.open; the limit is the setting's."""
        del path, limit
        disk = next(it.outboxes[worker] for it in self.gateways.values() if worker in it.outboxes)
        outbox = SimulatedOutbox.on(disk, self.world.process, worker, now_ns)
        outbox.kept = partial(self.submitted, worker, outbox)
        outbox.renamed = partial(self.renamed, worker)
        return outbox

    def _address_of(self, _interface: str) -> IPv4Address | None:
        public = self._kernel().public
        return None if public is None else IPv4Address(public)

    def _delete_connections(self, found: Iterable[Connection]) -> None:
        delete_connections(self.world.process, self._kernel(), found)

    def _queue(self, number: int, *, passes_when_full: bool = False) -> SimulatedQueue:
        self._descriptors += 1
        process, namespace = self.world.process, self._kernel()
        return SimulatedQueue(
            self.world,
            self.held_packets,
            process,
            namespace,
            number,
            self._descriptors,
            passes_when_full=passes_when_full,
        )

    def _run(self, argv: Sequence[str], *, stdin: str | None = None) -> str:
        process = self.world.process
        match list(argv):
            case ["unshare", "--net", "nft", *_]:
                if not self.setting.native_queue and "queue num" in (stdin or ""):
                    raise KernelRefused("Error: Could not process rule: No such file or directory")
                return ""
            case ["unshare", "--net", "iptables-nft", *_]:
                return ""
            case ["conntrack", *words]:
                process.call(COMMAND_NS)
                said = conntrack(self._kernel(), words)
            case ["iptables-nft", "-w", "-t", "mangle", *words]:
                process.call(COMMAND_NS)
                said = iptables(self._kernel(), words)
            case _:
                raise ValueError(f"not understood: {argv}")
        process.call()
        return said


def _where(name: str, error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{name}: {error!r} in {' < '.join(reversed(places[-6:]))}"


@cache
def gateway_file(gateway: str, worker: str, setting: Setting) -> GatewayFile:
    """The configuration of one worker."""
    services: dict[str, object] = {"cuseeme": {"profile": "cuseeme", "idle_s": setting.idle_s}}
    if setting.two_services:
        services["chat"] = {"control": ["udp/9000"], "forward": ["udp/9000-9001"], "idle_s": setting.idle_s}
    section = {
        "name": gateway,
        "worker": worker,
        "lan": ["lan"],
        "wan": "wan",
        "state_directory": Path("/nonexistent"),
        "refusal": setting.refusal,
        "standby": setting.standbys,
        "on_tracker_loss": "fence" if setting.fenced else "keep",
    }
    return GatewayFile.model_validate({"services": services, "gateway": section})


def places_of(setting: Setting, gateway: str) -> tuple[str, ...]:
    """The names of the machines that can serve it."""
    return (gateway, f"{gateway}x") if setting.shared else (gateway,)


def services_of(setting: Setting) -> tuple[Any, ...]:
    return kernel_services(gateway_file("gw1", "gw1-a", setting))
