"""A gateway's kernel datapath between two bare wires: packets in at one side, what leaves at the other.

Rule 1: both ends are packet sockets. No stack of another host answers, mends or drops anything.
Rule 2: each packet of an exchange carries an IP identification of its own, which NAT and fragmentation keep:
  an answer is told by that, whatever the gateway made of its addresses, ports and payload.
Rule 3: the queue is served as the worker serves it (rewriter/service.py), by `translate`.
"""

import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import cycle
from types import TracebackType
from typing import Final, Self

from rewriter import packet, probing, queue_rules
from rewriter.configuration import GatewayFile, ruleset_for
from rewriter.packet import UdpPacket, format_address
from rewriter.queues import Queue
from rewriter.ruleset import TABLE, keep_alive
from rewriter.tables import Tables
from rewriter.vocabulary import CLAIM, REFUSED, TALK, Ruleset
from tools.lab import Lab

EPOCH: Final = 1
PATIENCE_S: Final = 1.0
"""So long without any news, and what has not arrived is lost."""
MTU: Final = 1500

_ETHERTYPE_IPV4: Final = 0x0800
_ETHERNET_HEADER: Final = 14
_COPIED: Final = 0x80  # the bit of an IP option that stands in every fragment (RFC 791)
_RECEIVE_BUFFER: Final = 1 << 25
_SO_RCVBUFFORCE: Final = 33  # include/uapi/asm-generic/socket.h
_FAR_END: Final = "02:00:00:00:00:01"  # nobody's: the frames are seen by packet sockets alone
_NEXT_HOP: Final = "169.254.255.254"
_WIRES: Final = {"inside": ("workstation-1", "eth0", "lan0"), "outside": ("internet", "uplink0", "wan0")}


class Side(Enum):
    """Where a packet is put in, or comes out."""

    INSIDE = "inside"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Arrival:
    """An IPv4 packet that left the gateway, put together again if it came in several fragments."""

    side: Side
    packet: bytes
    fragments: int


@dataclass(slots=True)
class Answer:
    """What became of one packet: normally one arrival; how many times it was in the worker's queue."""

    arrivals: list[Arrival] = field(default_factory=list)
    queued: int = 0


def production_rules(*, rewrites_in_kernel: bool = True) -> Ruleset:
    """The rules as the rewriter makes them on this machine from a configuration that says nothing unusual."""
    file = GatewayFile.model_validate(
        {
            "gateway": {"name": "laboratory", "lan": ("lan0",), "wan": "wan0"},
            "services": {"cuseeme": {"profile": "cuseeme"}},
        }
    )
    return ruleset_for(
        file,
        EPOCH,
        native_queue=probing.has_native_queue(),
        most_speakers=probing.most_speakers(),
        rewrites_in_kernel=rewrites_in_kernel,
    )


class Datapath:
    """The gateway, as a context manager; it forwards and knows no service until a table is loaded."""

    def __init__(self) -> None:
        self._lab = Lab(workstations=1, outside={}, masquerade=False)
        self._wires: dict[Side, Wire] = {}
        self._queue: Queue | None = None
        self._answer_talk: Callable[[UdpPacket], bytes] | None = None
        self._identifications = cycle(range(1, 0x10000))
        self._loaded = False

    def __enter__(self) -> Self:
        """Build it; LabError if this machine cannot."""
        self._lab.__enter__()
        try:
            self._join_wires()
            self._tables = self._lab.within("gateway", Tables)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._queue is not None:
            self._queue.close()
        for wire in self._wires.values():
            wire.socket.close()
        self._lab.close()

    def _join_wires(self) -> None:
        # Without addresses of its own the gateway takes any address of a vector for somebody else's.
        commands = []
        for place, interface, device in _WIRES.values():
            self._lab.run(place, ["ip", "address", "flush", "dev", interface])
            commands += [
                f"address flush dev {device}",
                f"neighbour replace {_NEXT_HOP} lladdr {_FAR_END} dev {device} nud permanent",
            ]
        commands.append(f"route replace default via {_NEXT_HOP} dev wan0 onlink")
        self._configure(commands)
        for side in Side:
            place, interface, device = _WIRES[side.value]
            hardware = self._lab.run("gateway", ["cat", f"/sys/class/net/{device}/address"]).stdout
            gateway = bytes.fromhex(hardware.strip().replace(":", ""))
            self._wires[side] = self._lab.within(place, Wire, side, interface, gateway)

    def _configure(self, commands: Iterable[str]) -> None:
        self._lab.run("gateway", ["ip", "-batch", "-"], stdin_text="\n".join(commands))

    def load(
        self, rules: Ruleset, table: str, inside: Iterable[str], answer_talk: Callable[[UdpPacket], bytes]
    ) -> None:
        """Replace our table by a batch that makes another; `inside` are addresses that lie behind lan0.

        `answer_talk` gives the payload with which a packet leaves the OpenContinue queue.
        """
        self._configure(f"route replace {address}/32 via {_NEXT_HOP} dev lan0 onlink" for address in inside)
        self._tables.apply((f"delete table ip {TABLE}\n" if self._loaded else "") + table)
        if self._loaded:  # the new vectors' flows may have the ends of earlier ones
            self._lab.run("gateway", ["conntrack", "-F"])
        self._loaded = True
        self._answer_talk = answer_talk
        if self._queue is None:
            if not rules.native_queue:
                self._lab.within("gateway", queue_rules.add_queue_rules, rules)
            self._queue = self._lab.within("gateway", Queue, rules.talk_queue)
        self._rules = rules

    def exchange(self, packets: Sequence[tuple[Side, bytes]]) -> list[Answer]:
        """Send IPv4 packets in this order, as fragments where they are too long, and wait for what leaves.

        At most 100 OpenContinues of one source at a time: beyond that rate the ruleset queues none.
        """
        if self._queue is None:
            raise RuntimeError("no table is loaded")
        self._tables.apply(keep_alive(EPOCH) + f"flush set ip {TABLE} talk_rate\n")
        answers: dict[int, Answer] = {}
        for side, sent in packets:
            identification = next(self._identifications)
            answers[identification] = Answer()
            self._wires[side].send(with_identification(sent, identification))
        files: list[Queue | Wire] = [self._queue, *self._wires.values()]
        deadline_s = time.monotonic() + PATIENCE_S
        while not all(answer.arrivals for answer in answers.values()):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            ready, _, _ = select.select(files, [], [], left_s)
            if ready:
                deadline_s = time.monotonic() + PATIENCE_S
            self._serve_queue(self._queue, answers)
            self._take_arrivals(answers)
        self._take_arrivals(answers)
        return list(answers.values())

    def _take_arrivals(self, answers: dict[int, Answer]) -> None:
        for wire in self._wires.values():
            for arrival in wire.receive():
                # A straggler of an exchange that was given up has a number that is nobody's here.
                if (answer := answers.get(identification_of(arrival.packet))) is not None:
                    answer.arrivals.append(arrival)

    def _serve_queue(self, queue: Queue, answers: dict[int, Answer]) -> None:
        for queued in queue.receive():
            raw = queued.get_payload()
            udp = packet.parse(raw)
            if (answer := answers.get(identification_of(raw))) is not None:
                answer.queued += 1
            queued.set_mark(queued.get_mark() & ~self._rules.packet_mark(CLAIM | TALK | REFUSED))
            if udp is not None and self._answer_talk is not None:
                payload = self._answer_talk(udp)
                if payload != udp.payload:
                    queued.set_payload(udp.with_payload(payload))
            queued.accept()


class Wire:
    """The far end of one of the gateway's links."""

    def __init__(self, side: Side, interface: str, gateway: bytes) -> None:
        self.side = side
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self.socket.bind((interface, _ETHERTYPE_IPV4))
        far_end = bytes.fromhex(_FAR_END.replace(":", ""))
        self._ethernet_header = gateway + far_end + _ETHERTYPE_IPV4.to_bytes(2, "big")
        self._waiting: dict[bytes, dict[int, bytes]] = {}

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, sent: bytes) -> None:
        for fragment in fragments(sent):
            self.socket.send(self._ethernet_header + fragment)

    def receive(self) -> Iterator[Arrival]:
        """All packets that have come whole; never blocks."""
        while True:
            try:
                frame = self.socket.recv(MTU + _ETHERNET_HEADER)
            except BlockingIOError:
                return
            came = frame[_ETHERNET_HEADER:]
            came = came[: int.from_bytes(came[2:4], "big")]
            if not int.from_bytes(came[6:8], "big") & 0x3FFF:
                yield Arrival(self.side, came, 1)
            elif (whole := self._put_together(came)) is not None:
                yield whole

    def _put_together(self, fragment: bytes) -> Arrival | None:
        key = fragment[4:6] + fragment[12:20]
        pieces = self._waiting.setdefault(key, {})
        pieces[int.from_bytes(fragment[6:8], "big") & 0x1FFF] = fragment
        last = pieces[max(pieces)]
        body = b"".join(parts(pieces[offset])[1] for offset in sorted(pieces))
        length = max(pieces) * 8 + len(parts(last)[1])
        if last[6] & 0x20 or len(body) != length:
            return None
        del self._waiting[key]
        whole = bytearray(parts(pieces[0])[0])
        whole[2:4], whole[6:8] = (len(whole) + length).to_bytes(2, "big"), bytes(2)
        return Arrival(self.side, bytes(with_header_checksum(whole)) + body, len(pieces))


def parts(whole: bytes) -> tuple[bytes, bytes]:
    """An IPv4 packet's header, options included, and its body."""
    length = (whole[0] & 0x0F) * 4
    return whole[:length], whole[length:]


def with_options(whole: bytes, options: bytes) -> bytes:
    """An IPv4 packet that has no options, with some: whole words."""
    header = bytearray(whole[:20] + options)
    header[0] = 0x40 | len(header) // 4
    header[2:4] = (len(whole) + len(options)).to_bytes(2, "big")
    return bytes(with_header_checksum(header)) + whole[20:]


def fragments(sent: bytes) -> Iterator[bytes]:
    """An IPv4 packet in pieces that fit the link; its first option says whether all are copied."""
    first, body = parts(sent)
    room = (MTU - len(first)) // 8 * 8
    if len(sent) <= MTU:
        yield sent
        return
    for offset in range(0, len(body), room):
        piece = body[offset : offset + room]
        header = bytearray(first)
        if offset > 0 and len(first) > 20 and not first[20] & _COPIED:
            header = header[:20]
            header[0] = 0x45
        header[2:4] = (len(header) + len(piece)).to_bytes(2, "big")
        more = 0x2000 if offset + room < len(body) else 0
        header[6:8] = (more | offset // 8).to_bytes(2, "big")
        yield bytes(with_header_checksum(header)) + piece


def identification_of(whole: bytes) -> int:
    return int.from_bytes(whole[4:6], "big")


def with_identification(whole: bytes, identification: int) -> bytes:
    """The packet with another IP identification, its header checksum made anew."""
    header, body = parts(whole)
    identified = bytearray(header)
    identified[4:6] = identification.to_bytes(2, "big")
    return bytes(with_header_checksum(identified)) + body


def with_header_checksum(header: bytearray) -> bytearray:
    header[10:12] = bytes(2)
    # The ones' complement sum is the number modulo 0xFFFF (rewriter/packet.py).
    header[10:12] = (0xFFFF - int.from_bytes(header, "big") % 0xFFFF).to_bytes(2, "big")
    return header


def describe(arrival: Arrival) -> str:
    """An arrival in words: where, from whom to whom."""
    udp = packet.parse(arrival.packet)
    ends = f"{format_address(arrival.packet[12:16])} to {format_address(arrival.packet[16:20])}"
    if udp is not None:
        ends = f"{udp.source} to {udp.destination}"
    return f"{arrival.side.value}, {ends}"
