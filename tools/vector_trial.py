"""Vectors tried two ways: by `translate`, and as real packets in a datapath of this kernel's.

Rule 1: the kernel's table is the one that `rewriter.ruleset` renders for production; of the laboratory's own
  making are the NAT chains alone, for the addresses and ports of the vectors, and elements of the sets.
Rule 2: every vector crosses in connections opened from either side, with a UDP checksum and without.
Rule 3: every vector has a peer of its own, so that vectors of the same addresses and ports are told apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Final

from rewriter import packet, ruleset
from rewriter.cuseeme import HEADER_LENGTH, DataType, Direction, translate
from rewriter.packet import Endpoint, UdpPacket, build_udp, is_checksum_valid
from rewriter.phrases import address_pair, chain, mark_connection, names
from rewriter.ruleset import TABLE
from rewriter.vocabulary import OPENED_INSIDE, OPENED_OUTSIDE, Ports, Ruleset, Service
from tools.datapath import (
    EPOCH,
    Answer,
    Arrival,
    Datapath,
    Side,
    describe,
    production_rules,
    with_options,
)

VECTORS_AT_ONCE: Final = 25
"""Four packets each: 100 OpenContinues of one source are as many as the ruleset queues at once."""
VECTORS_IN_A_TABLE: Final = 1000
"""Fewer than the sets of the ruleset have room for."""

CALLED_PORT: Final = 7648
CALLING_PORT: Final = 40001
"""A caller from another port than the service's is a caller too."""
_FIRST_PEER: Final = int(IPv4Address("198.18.0.1"))  # RFC 2544, for benchmarks
_ENDS_OF_A_SUBNET: Final = (0, 255)


@dataclass(frozen=True, slots=True)
class Vector:
    """A payload before and after translation, and its flow's inside ends; `line` is where it was found.

    `options`: whole words in the IP headers of its packets.
    """

    line: int
    name: str
    category: str
    direction: Direction
    public: Endpoint
    private: Endpoint
    payload: bytes
    expected: bytes
    options: bytes = b""

    def is_queued(self, rules: Ruleset) -> bool:
        """Whether the ruleset queues it: with a whole header an OpenContinue, or anything without `@ih`."""
        data_type = int.from_bytes(self.payload[22:24], "big")
        is_talk = data_type == DataType.OPEN_CONTINUE or not rules.rewrites_in_kernel
        return len(self.payload) >= HEADER_LENGTH and is_talk


@dataclass(frozen=True, slots=True)
class Failure:
    """What differs from `expected`, and the payload that came instead; None where none came."""

    what: str
    got: bytes | None


@dataclass(slots=True)
class Result:
    """A vector's four verdicts, and the reasons of those that are False."""

    vector: Vector
    translate_equal: bool = True
    kernel_equal: bool = True
    checksum_right: bool = True
    without_checksum_right: bool = True
    failures: list[Failure] = field(default_factory=list)

    def is_right(self) -> bool:
        """Whether nothing differs."""
        return not self.failures


@dataclass(frozen=True, slots=True)
class Flow:
    """A vector with the outside address that it is exchanged with."""

    vector: Vector
    peer: bytes

    def packet(
        self, opened: int, payload: bytes, direction: Direction, *, checksum: bool
    ) -> tuple[Side, bytes]:
        """The packet as it is put in, in the connection opened from that side."""
        peer = self.peer_of(opened)
        if direction is Direction.OUT:
            side, ends = Side.INSIDE, (self.vector.private, peer)
        else:
            side, ends = Side.OUTSIDE, (peer, self.vector.public)
        return side, with_options(build_udp(*ends, payload, checksum=checksum), self.vector.options)

    def opening(self, opened: int) -> tuple[Side, bytes]:
        """An empty packet that makes a connection."""
        direction = Direction.OUT if opened == OPENED_INSIDE else Direction.IN
        return self.packet(opened, b"", direction, checksum=True)

    def peer_of(self, opened: int) -> Endpoint:
        return Endpoint(self.peer, CALLED_PORT if opened == OPENED_INSIDE else CALLING_PORT)


# --- the table --------------------------------------------------------------------------------------------


def vector_rules(rules: Ruleset, vectors: Sequence[Vector]) -> Ruleset:
    """Production's rules for a service that has the vectors' ports too: the sets name them, no chain does."""
    service = rules.services[0]
    ports = {port for vector in vectors for port in (vector.public.port, vector.private.port)}
    more = tuple(Ports("udp", port, port) for port in sorted(ports))
    return replace(rules, services=(replace(service, forward=(*service.forward, *more)),))


def vector_table(rules: Ruleset, flows: Sequence[Flow]) -> str:
    """The whole batch: production's table with the vectors' NAT chains; every private address is a holder."""
    service = rules.services[0]
    holders = sorted({IPv4Address(flow.vector.private.address) for flow in flows})
    own = sorted({*holders, *(IPv4Address(flow.vector.public.address) for flow in flows)})
    return (
        f"create table ip {TABLE}\n"
        + ruleset.table(rules, EPOCH, (), nat_chains(rules, service, flows))
        + add_elements(f"{service.label}_holders", map(str, holders))
        + add_elements("own_address", map(address_pair, own))
    )


def add_elements(name: str, elements: Iterator[str]) -> str:
    return f"add element ip {TABLE} {name} {{ {', '.join(elements)} }}\n"


def nat_chains(rules: Ruleset, service: Service, flows: Sequence[Flow]) -> Iterator[str]:
    """Each peer's connections get its vector's addresses and ports, and the marks of production's."""
    lan, wan = names(rules.lan), names(rules.wan)
    for name, side in (("vector_private", "private"), ("vector_public", "public")):
        ends = ((flow, getattr(flow.vector, side)) for flow in flows)
        elements = (f"{IPv4Address(f.peer)} : {IPv4Address(end.address)} . {end.port}" for f, end in ends)
        yield (
            f"  map {name} {{ type ipv4_addr : ipv4_addr . inet_service;"
            f" elements = {{ {', '.join(elements)} }}; }}"
        )
    called = mark_connection(rules, service, OPENED_OUTSIDE)
    calling = mark_connection(rules, service, OPENED_INSIDE)
    yield chain(
        "nat_arriving",
        "type nat hook prerouting priority -101; policy accept;",
        [f"iifname {wan} meta l4proto udp {called} dnat ip to ip saddr map @vector_private"],
    )
    yield chain(
        "nat_leaving",
        "type nat hook postrouting priority 99; policy accept;",
        [f"iifname {lan} oifname {wan} meta l4proto udp {calling} snat ip to ip daddr map @vector_public"],
    )


def peers(vectors: Sequence[Vector]) -> Iterator[bytes]:
    """Addresses that are no vector's own."""
    taken = {end.address for vector in vectors for end in (vector.public, vector.private)}
    number = _FIRST_PEER
    while True:
        peer = number.to_bytes(4, "big")
        if peer not in taken and number & 0xFF not in _ENDS_OF_A_SUBNET:
            yield peer
        number += 1


# --- the trial --------------------------------------------------------------------------------------------


def try_vectors(vectors: Sequence[Vector], *, rewrites_in_kernel: bool = True) -> Iterator[Result]:
    """Try all vectors, in their order; LabError where this machine cannot."""
    with Datapath() as datapath:
        yield from try_in(datapath, production_rules(rewrites_in_kernel=rewrites_in_kernel), vectors)


def try_in(datapath: Datapath, production: Ruleset, vectors: Sequence[Vector]) -> Iterator[Result]:
    """The same in a datapath that is there, as often as wanted, always with the same `production` rules."""
    rules = vector_rules(production, vectors)
    for start in range(0, len(vectors), VECTORS_IN_A_TABLE):
        some = vectors[start : start + VECTORS_IN_A_TABLE]
        flows = [Flow(vector, peer) for vector, peer in zip(some, peers(vectors), strict=False)]
        load(datapath, rules, flows)
        for first in range(0, len(flows), VECTORS_AT_ONCE):
            yield from try_flows(datapath, rules, flows[first : first + VECTORS_AT_ONCE])


def load(datapath: Datapath, rules: Ruleset, flows: Sequence[Flow]) -> None:
    by_peer = {flow.peer: flow.vector for flow in flows}

    def answer_talk(udp: UdpPacket) -> bytes:
        is_out = udp.destination.address in by_peer
        vector = by_peer[udp.destination.address if is_out else udp.source.address]
        direction = Direction.OUT if is_out else Direction.IN
        return translate(udp.payload, direction, vector.public, vector.private)

    inside = sorted({str(IPv4Address(flow.vector.private.address)) for flow in flows})
    datapath.load(rules, vector_table(rules, flows), inside, answer_talk)


def try_flows(datapath: Datapath, rules: Ruleset, flows: Sequence[Flow]) -> Iterator[Result]:
    sides = (OPENED_INSIDE, OPENED_OUTSIDE)
    datapath.exchange([flow.opening(opened) for flow in flows for opened in sides])
    ways = [(opened, checksum) for opened in sides for checksum in (True, False)]
    answers = iter(
        datapath.exchange(
            [
                flow.packet(opened, flow.vector.payload, flow.vector.direction, checksum=checksum)
                for flow in flows
                for opened, checksum in ways
            ]
        )
    )
    for flow in flows:
        result = Result(flow.vector)
        translated = translate(
            flow.vector.payload, flow.vector.direction, flow.vector.public, flow.vector.private
        )
        if translated != flow.vector.expected:
            result.translate_equal = False
            result.failures.append(Failure("translate", translated))
        for opened, checksum in ways:
            judge(result, flow, opened, next(answers), rules=rules, checksum=checksum)
        yield result


def judge(result: Result, flow: Flow, opened: int, answer: Answer, *, rules: Ruleset, checksum: bool) -> None:
    """Hold what left the gateway against the vector."""
    way = "kernel" if rules.rewrites_in_kernel else "queue"
    way += f", opened {'inside' if opened == OPENED_INSIDE else 'outside'}"
    way += "" if checksum else ", sent without a checksum"
    found = list(differences(flow, opened, answer, rules))
    arrived = packet.parse(answer.arrivals[0].packet) if answer.arrivals else None
    got = None if arrived is None else arrived.payload
    result.failures += [Failure(f"{way}: {difference}", got) for difference in found]
    if arrived is None:
        is_checksum_right = False
    elif checksum:
        is_checksum_right = arrived.checksum != 0 and is_checksum_valid(arrived.packet)
    else:
        is_checksum_right = arrived.checksum == 0
    if not is_checksum_right and arrived is not None:
        result.failures.append(Failure(f"{way}: it has the checksum {arrived.checksum:#06x}", got))
    if checksum:
        result.kernel_equal &= not found
        result.checksum_right &= is_checksum_right
    else:
        result.without_checksum_right &= is_checksum_right and not found


def differences(flow: Flow, opened: int, answer: Answer, rules: Ruleset) -> Iterator[str]:
    """What differs from the vector but for the checksum."""
    vector = flow.vector
    if not answer.arrivals:
        yield "nothing arrived"
    if len(answer.arrivals) > 1:
        yield f"{len(answer.arrivals)} packets arrived"
    if answer.queued != vector.is_queued(rules):
        yield f"{answer.queued} times in the queue"
    for arrival in answer.arrivals[:1]:
        udp = packet.parse(arrival.packet)
        if udp is None:
            yield "what arrived is no whole UDP packet"
        elif udp.payload != vector.expected:
            yield "another payload arrived"
        if not is_addressed(flow, opened, arrival, udp):
            yield f"it arrived {describe(arrival)}"


def is_addressed(flow: Flow, opened: int, arrival: Arrival, udp: UdpPacket | None) -> bool:
    if udp is None:
        return False
    peer, vector = flow.peer_of(opened), flow.vector
    if vector.direction is Direction.OUT:
        return (arrival.side, udp.source, udp.destination) == (Side.OUTSIDE, vector.public, peer)
    return (arrival.side, udp.source, udp.destination) == (Side.INSIDE, peer, vector.private)
