"""Real packets through the kernel: what crosses the gateway is what the captures show on its other side.

The gateway has production's whole table, NAT included, with one client of the call as its holder. The
captures are those of tests/unit/rewriter/test_captures.py, which says what is in them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from rewriter import ruleset
from rewriter.cuseeme import DataType, Direction, Endpoint, translate
from rewriter.cuseeme import parse as parse_payload
from rewriter.packet import UdpPacket, build_udp, is_checksum_valid, parse
from rewriter.vocabulary import Element
from tests.unit.rewriter.test_captures import GATEWAY, SENDER, WATCHER, Datagram, calls, datagrams
from tools.datapath import EPOCH, Answer, Datapath, Side, production_rules

AT_ONCE = 50
"""Half of what the ruleset queues of one source at once."""


@dataclass(frozen=True)
class Crossing:
    """One packet of a call on both sides of the gateway."""

    direction: Direction
    before: Datagram
    after: Datagram

    def sent(self) -> tuple[Side, bytes]:
        side = Side.INSIDE if self.direction is Direction.OUT else Side.OUTSIDE
        return side, build_udp(self.before.source, self.before.destination, self.before.payload)


@dataclass(frozen=True)
class Replay:
    """A client's packets of a call, and what became of each in the gateway."""

    crossings: list[Crossing]
    answers: list[Answer]


def crossings(inside: list[Datagram], outside: list[Datagram], client: Endpoint) -> Iterator[Crossing]:
    """The packets of one client in the order in which they were seen inside."""
    public = Endpoint(GATEWAY, client.port)
    left = iter([datagram for datagram in outside if datagram.source == public])
    came = iter([datagram for datagram in outside if datagram.destination == public])
    for datagram in inside:
        if datagram.source == client:
            yield Crossing(Direction.OUT, datagram, next(left))
        elif datagram.destination == client:
            yield Crossing(Direction.IN, next(came), datagram)


def replay(found: list[Crossing], client: Endpoint) -> list[Answer]:
    public = Endpoint(GATEWAY, client.port)
    holder, address = IPv4Address(client.address), IPv4Address(GATEWAY)
    rules = production_rules()

    def answer_talk(udp: UdpPacket) -> bytes:
        direction = Direction.OUT if udp.source == client else Direction.IN
        return translate(udp.payload, direction, public, client)

    with Datapath() as datapath:
        binding = Element(rules.services[0].name, holder, address)
        table = ruleset.render(rules, EPOCH, [binding], replaces=None)
        datapath.load(rules, table, [str(holder)], answer_talk)
        # The first packet makes the connection; an answer that overtook it would be a stranger's call.
        answers = datapath.exchange([found[0].sent()])
        for start in range(1, len(found), AT_ONCE):
            answers += datapath.exchange([crossing.sent() for crossing in found[start : start + AT_ONCE]])
    return answers


@pytest.fixture(scope="module", params=list(calls()))
def capture(request: pytest.FixtureRequest) -> tuple[list[Datagram], list[Datagram]]:
    inside, outside = calls()[request.param]
    return list(datagrams(inside)), list(datagrams(outside))


@pytest.fixture(scope="module", params=[SENDER, WATCHER], ids=["sender", "watcher"])
def replayed(request: pytest.FixtureRequest, capture: tuple[list[Datagram], list[Datagram]]) -> Replay:
    client: Endpoint = request.param
    found = list(crossings(*capture, client))
    assert found[0].direction is Direction.OUT
    return Replay(found, replay(found, client))


@pytest.mark.parametrize("direction", list(Direction))
def test_every_packet_arrives_once_as_the_capture_of_the_other_side_shows_it(
    replayed: Replay, direction: Direction
) -> None:
    far_side = Side.OUTSIDE if direction is Direction.OUT else Side.INSIDE
    compared = 0
    for crossing, answer in zip(replayed.crossings, replayed.answers, strict=True):
        if crossing.direction is not direction:
            continue
        (arrival,) = answer.arrivals
        arrived = parse(arrival.packet)
        assert arrived is not None
        assert arrival.side is far_side
        assert (arrived.source, arrived.destination) == (crossing.after.source, crossing.after.destination)
        assert arrived.payload == crossing.after.payload
        assert arrived.checksum == crossing.after.checksum
        assert is_checksum_valid(arrival.packet)
        compared += 1
    assert compared > 5


def test_fragmented_frames_cross_in_as_many_fragments_as_they_did_then(replayed: Replay) -> None:
    pairs = list(zip(replayed.crossings, replayed.answers, strict=True))
    fragmented = [crossing for crossing, _ in pairs if crossing.after.fragments > 1]
    assert {len(crossing.after.payload) for crossing in fragmented} == {1800}
    for crossing, answer in pairs:
        assert answer.arrivals[0].fragments == crossing.after.fragments


def test_open_continues_are_asked_about_once_and_media_never(replayed: Replay) -> None:
    types = set()
    for crossing, answer in zip(replayed.crossings, replayed.answers, strict=True):
        payload = parse_payload(crossing.before.payload)
        assert payload is not None
        assert answer.queued == (1 if payload.is_open_continue else 0)
        types.add(payload.header.data_type)
    assert {DataType.OPEN_CONTINUE, DataType.SMALL_VIDEO} <= types
