"""What rewriter/ asks of its system, simulated: nft, conntrack, iptables, NFQUEUE, signals.

Rule 1: the interfaces are those of the names they stand for; `site.py` puts them there. Rule 2: each enters
and leaves through `Process.call`, so that a worker can be killed or stopped before and after each.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from ipaddress import IPv4Address
from typing import Final

from rewriter import tables
from rewriter.command import KernelRefused
from rewriter.connections import Connection
from rewriter.queues import QueueBusy
from rewriter.ruleset import HOOKED_CHAINS
from rewriter.tables import to_key
from rewriter.vocabulary import Key, Service
from tools.simulation.netfilter import Kernel
from tools.simulation.nft import BatchRefused, Set, Tables
from tools.simulation.packets import Packet, PacketQueue
from tools.simulation.wire import STOP
from tools.simulation.world import MILLISECOND_NS, Process, World
from tracker.supervision import Supervision

NFT_NS: Final = 300_000
NETLINK_NS: Final = 20_000
COMMAND_NS: Final = 4 * MILLISECOND_NS


@contextmanager
def replaced(owner: object, names: Mapping[str, object]) -> Iterator[None]:
    """These names of a module or class stand for something else, for a while."""
    before = {name: vars(owner)[name] for name in names}
    try:
        for name, value in names.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


class SimulatedSupervision(Supervision):
    """tracker.supervision.Supervision: hears of SIGTERM alone, and nobody hears of us."""

    def __init__(self, process: Process) -> None:
        super().__init__(STOP)
        self._process = process

    def hear(self) -> bool:
        self.stopping = self._process.stop_requested
        return False


@cache
def _address(text: str) -> IPv4Address:
    return IPv4Address(text)


@cache
def _key(text: str) -> Key:
    return to_key(text.split(" . "))


class SimulatedTables(tables.Tables):
    """rewriter.tables.Tables on the simulated kernel."""

    def __init__(self, process: Process, tables: Tables) -> None:
        self._process = process
        self._tables = tables

    def apply(self, batch: str) -> None:
        self._process.call(NFT_NS)
        try:
            self._tables.apply(batch)
        except BatchRefused as refused:
            raise KernelRefused(str(refused)) from refused
        self._process.call()

    def counters(self) -> dict[str, tuple[int, int]]:
        table = self._tables.table
        if table is None:
            raise KernelRefused("Error: No such file or directory")
        return {name: (packets, octets) for name, (packets, octets) in table.counters.items()}

    def reset_counter(self, name: str) -> None:
        if self._tables.table is None:
            raise KernelRefused("Error: No such file or directory")
        self._tables.table.counters[name] = [0, 0]

    def numbers(self, services: Iterable[Service]) -> dict[str, int]:
        table = self._tables.table
        sets = {} if table is None else table.sets
        names = {service.label: f"{service.label}_number" for service in services}
        return {label: int(next(iter(sets[name].elements))) for label, name in names.items() if name in sets}

    def epoch(self) -> int | None:
        self._process.call()
        return None if self._tables.table is None else self._tables.table.epoch()

    def chain(self, name: str) -> str | None:
        table = self._tables.table
        return None if table is None or name not in HOOKED_CHAINS else f"{name} {table.chains}"

    def remaining(self, name: str) -> dict[str, float]:
        now_ns = self._tables.clock()
        return {
            key: max(0, (element.expires_ns or 0) - now_ns) // MILLISECOND_NS / 1000
            for key, element in self._found(name).living(now_ns).items()
        }

    def timed(self, name: str) -> dict[Key, float]:
        return {_key(key): left_s for key, left_s in self.remaining(name).items()}

    def pairs(self, name: str) -> set[IPv4Address]:
        return {_address(key.partition(" . ")[0]) for key in self._found(name).living(self._tables.clock())}

    def mapped(self, name: str) -> dict[Key, IPv4Address]:
        living = self._found(name).living(self._tables.clock())
        return {_key(key): _address(element.value or "") for key, element in living.items()}

    def _found(self, name: str) -> Set:
        self._process.call()
        try:
            return self._tables.find(name)
        except BatchRefused as refused:
            raise KernelRefused(str(refused)) from refused


# --- queues -----------------------------------------------------------------------------------------------


Held = dict["SimulatedPacket", int]
"""Packets that wait for their verdict, and since when."""


class SimulatedQueue:
    """rewriter.queues.Queue."""

    def __init__(  # noqa: PLR0917 - what makes a queue
        self,
        world: World,
        held: Held,
        process: Process,
        namespace: Kernel,
        number: int,
        descriptor: int,
        *,
        passes_when_full: bool,
    ) -> None:
        process.call()
        if number in namespace.queues:
            raise QueueBusy(f"queue {number}: Failed to create queue")
        self.number = number
        self._world = world
        self._held = held
        self.process = process
        self._namespace = namespace
        self._descriptor = descriptor
        self._queue = namespace.queues[number] = PacketQueue(process, passes_when_full)
        process.files[descriptor] = self._queue
        process.died.append(self._unbind)

    def fileno(self) -> int:
        return self._descriptor

    def receive(self) -> "list[SimulatedPacket]":
        self.process.call()
        packets = [SimulatedPacket(self._world, self._held, self, packet) for packet in self._queue.packets]
        self._queue.packets.clear()
        if packets and self.process.ambush is not None:
            self.process.strike(self.process.ambush)
            self.process.ambush = None
        for packet in packets:
            self._held[packet] = self._world.now_ns
        return packets

    def close(self) -> None:
        self.process.call()
        self._unbind()

    def _unbind(self) -> None:
        if self._namespace.queues.get(self.number) is self._queue:
            del self._namespace.queues[self.number]
        self._queue.packets.clear()
        for packet in [it for it in self._held if it.queue is self]:
            del self._held[packet]


class SimulatedPacket:
    """netfilterqueue.Packet, retained."""

    def __init__(self, world: World, held: Held, queue: SimulatedQueue, packet: Packet) -> None:
        self.queue = queue
        self.packet = packet
        self.process = queue.process
        self._world = world
        self._held = held

    def get_payload(self) -> bytes:
        return self.packet.bytes()

    def get_hw(self) -> bytes:
        return b"\x02\x00" + IPv4Address(self.packet.source).packed + b"\0\0"

    def get_mark(self) -> int:
        return self.packet.mark << 24

    def set_mark(self, mark: int) -> None:
        self.packet.mark = mark >> 24

    def set_payload(self, _payload: bytes) -> None:
        """What is in it matters to nobody here."""

    def accept(self) -> None:
        self._verdict()
        if self.packet.resume is not None:
            self.packet.resume()

    def drop(self) -> None:
        self._verdict()

    def _verdict(self) -> None:
        self._world.process.call()
        if self._held.pop(self, None) is None:
            self._world.fail("a packet gets one verdict", f"{self.packet.tuple} got another one")


# --- commands ---------------------------------------------------------------------------------------------


def conntrack(namespace: Kernel, words: Sequence[str]) -> str:
    match words:
        case ["-L"]:
            return "".join(it.line() + "\n" for it in namespace.entries())
        case ["-L", "-m", mark]:
            value, mask = (int(number, 0) for number in mark.split("/"))
            return "".join(it.line() + "\n" for it in namespace.entries() if it.mark & mask == value)
        case _:
            raise ValueError(f"not understood: conntrack {words}")


def delete_connections(process: Process, namespace: Kernel, found: Iterable[Connection]) -> None:
    """rewriter.connections.delete_connections: one after another, as there."""
    for connection in found:
        process.call(NETLINK_NS)
        source, destination, sport, dport = connection.original
        entry = namespace.find((str(source), sport, str(destination), dport))
        if entry is not None:
            namespace.delete(entry)
        process.call()


def iptables(namespace: Kernel, words: Sequence[str]) -> str:
    text = " ".join(words)
    if text == "-S FORWARD":
        return "".join(
            f'-A FORWARD -m mark --mark {mark:#x}/{mark:#x} -m comment --comment "porthold-{number}"'
            f" -j NFQUEUE --queue-num {number}{' --queue-bypass' if bypass else ''}\n"
            for number, (mark, bypass) in namespace.queue_rules.items()
        )
    number = re.search(r"--queue-num (\d+)", text)
    mark = re.search(r"--mark (0x[0-9a-f]+)/", text)
    if number is None or mark is None or words[0] not in ("-I", "-D"):
        raise ValueError(f"not understood: iptables {text}")
    if words[0] == "-D":
        namespace.queue_rules.pop(int(number[1]), None)
    else:
        rule = (int(mark[1], 16), "--queue-bypass" in text)
        namespace.queue_rules = {int(number[1]): rule, **namespace.queue_rules}
    return ""
