"""Real packets: what was sent inside, translated, is what was seen outside, and back.

`call_inside.pcap` and `call_outside.pcap` are a call between real clients and a real reflector through a NAT,
cut down to its login, first media, a fragmented frame each way and the hang-ups; both hold the same packets.
Where the whole captures lie beside the checkout, they are read as well.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import dpkt
import pytest

from rewriter.cuseeme import DataType, Direction, Endpoint, parse, translate
from rewriter.packet import UDP, build_udp, is_checksum_valid, udp_checksum
from rewriter.packet import parse as parse_packet

REPOSITORY = Path(__file__).parents[3]
DATA = REPOSITORY / "tests" / "data"
WHOLE = REPOSITORY.parent / "shared" / "captures"
REFLECTOR = Endpoint.parse("203.0.113.10:7648")
GATEWAY = Endpoint.parse("192.0.2.2:0").address
SENDER = Endpoint.parse("192.168.1.10:60211")  # video and audio, from an ephemeral port
WATCHER = Endpoint.parse("192.168.1.11:7648")  # receives only, from the port of the protocol


class Datagram(NamedTuple):
    """A UDP datagram put together from its fragments, and in how many it came."""

    source: Endpoint
    destination: Endpoint
    checksum: int
    payload: bytes
    fragments: int


@dataclass
class Fragments:
    """What has come of one IP packet: its pieces by offset, and where the last one ends."""

    pieces: dict[int, bytes]
    end: int | None = None


def udp_packets(capture: Path) -> Iterator[tuple[dpkt.ip.IP, bytes]]:
    """Give each IP packet or fragment of UDP as dpkt reads it and as it was on the wire."""
    with capture.open("rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            packet = dpkt.ethernet.Ethernet(frame).data
            if isinstance(packet, dpkt.ip.IP) and packet.p == UDP:
                yield packet, frame[14 : 14 + packet.len]


def datagrams(capture: Path) -> Iterator[Datagram]:
    """Reassemble; a datagram that is not whole when the capture ends is a fault."""
    waiting: dict[tuple[bytes, bytes, int], Fragments] = {}
    for packet, raw in udp_packets(capture):
        key = (packet.src, packet.dst, packet.id)
        fragments = waiting.setdefault(key, Fragments({}))
        offset, body = packet.offset * 8, raw[packet.hl * 4 :]
        fragments.pieces[offset] = body
        if not packet.mf:
            fragments.end = offset + len(body)
        whole = b"".join(fragments.pieces[offset] for offset in sorted(fragments.pieces))
        if len(whole) == fragments.end:
            del waiting[key]
            source_port, destination_port, length, checksum = struct.unpack_from("!HHHH", whole)
            assert length == len(whole)
            source, destination = Endpoint(packet.src, source_port), Endpoint(packet.dst, destination_port)
            yield Datagram(source, destination, checksum, whole[8:], len(fragments.pieces))
    assert not waiting


@dataclass
class Call:
    """The same packets seen on both sides of the NAT."""

    inside: list[Datagram]
    outside: list[Datagram]


def calls() -> dict[str, tuple[Path, Path]]:
    found = {"cut-down": (DATA / "call_inside.pcap", DATA / "call_outside.pcap")}
    if WHOLE.is_dir():
        found["whole"] = (WHOLE / "c_never_ci_inside.pcap", WHOLE / "c_never_ci_reflector.pcap")
    return found


@pytest.fixture(scope="module", params=list(calls().values()), ids=list(calls()))
def call(request: pytest.FixtureRequest) -> Call:
    inside, outside = request.param
    return Call(list(datagrams(inside)), list(datagrams(outside)))


@pytest.mark.parametrize("client", [SENDER, WATCHER], ids=["sender", "watcher"])
def test_what_went_out_inside_translated_is_what_was_seen_outside(call: Call, client: Endpoint) -> None:
    public = Endpoint(GATEWAY, client.port)
    sent = [datagram for datagram in call.inside if datagram.source == client]
    seen = [datagram for datagram in call.outside if datagram.source == public]
    assert sent
    expected = [translate(datagram.payload, Direction.OUT, public, client) for datagram in sent]
    assert [datagram.payload for datagram in seen] == expected
    assert all(datagram.payload != payload for datagram, payload in zip(sent, expected, strict=True))


@pytest.mark.parametrize("client", [SENDER, WATCHER], ids=["sender", "watcher"])
def test_what_came_in_outside_translated_is_what_was_seen_inside(call: Call, client: Endpoint) -> None:
    public = Endpoint(GATEWAY, client.port)
    sent = [datagram for datagram in call.outside if datagram.destination == public]
    seen = [datagram for datagram in call.inside if datagram.destination == client]
    assert sent
    expected = [translate(datagram.payload, Direction.IN, public, client) for datagram in sent]
    assert [datagram.payload for datagram in seen] == expected
    assert any(datagram.payload != payload for datagram, payload in zip(sent, expected, strict=True))


def test_both_directions_carried_fragmented_frames_of_1800_bytes(call: Call) -> None:
    fragmented = {
        (len(datagram.payload), datagram.destination) for datagram in call.outside if datagram.fragments > 1
    }
    assert (1800, REFLECTOR) in fragmented
    assert (1800, Endpoint(GATEWAY, WATCHER.port)) in fragmented


def test_every_checksum_on_the_wire_is_the_computed_one(call: Call) -> None:
    for datagram in call.inside + call.outside:
        ports_and_length = (datagram.source.port, datagram.destination.port, 8 + len(datagram.payload))
        header = struct.pack("!HHHH", *ports_and_length, datagram.checksum)
        computed = udp_checksum(
            datagram.source.address, datagram.destination.address, header + datagram.payload
        )
        assert datagram.checksum == computed


def test_a_real_packet_rewritten_in_place_is_still_valid(call: Call) -> None:
    for datagram in call.inside:
        client = datagram.source if datagram.destination == REFLECTOR else datagram.destination
        direction = Direction.OUT if client == datagram.source else Direction.IN
        packet = parse_packet(build_udp(datagram.source, datagram.destination, datagram.payload))
        assert packet is not None
        assert packet.checksum == datagram.checksum
        rewritten = packet.with_payload(
            translate(packet.payload, direction, Endpoint(GATEWAY, client.port), client)
        )
        assert is_checksum_valid(rewritten)


def test_a_fragment_alone_is_no_packet() -> None:
    packets = list(udp_packets(DATA / "call_outside.pcap"))
    fragments = [raw for packet, raw in packets if packet.mf or packet.offset]
    assert len(fragments) == 6
    assert all((parse_packet(raw) is None) == (raw in fragments) for _, raw in packets)


def test_the_real_hang_ups_are_recognised(call: Call) -> None:
    hang_ups = Counter(d.source for d in call.inside if (packet := parse(d.payload)) and packet.is_hang_up)
    assert hang_ups == {SENDER: 1, WATCHER: 2, REFLECTOR: 3}


def test_the_last_word_of_each_client_is_its_hang_up(call: Call) -> None:
    for client in (SENDER, WATCHER):
        last = [parse(datagram.payload) for datagram in call.inside if datagram.source == client][-1]
        assert last is not None
        assert last.is_hang_up


def test_the_names_in_the_real_packets_are_read(call: Call) -> None:
    names = {
        (d.source, packet.user_name) for d in call.inside if (packet := parse(d.payload)) and packet.user_name
    }
    assert {(SENDER, "InOCU"), (WATCHER, "InSuite"), (REFLECTOR, "Out")} <= names


def test_relayed_open_continues_name_the_recipients_inside_address(call: Call) -> None:
    named = set()
    for datagram in call.inside:
        packet = parse(datagram.payload)
        if datagram.source == REFLECTOR and packet and packet.open_continue:
            named |= {(datagram.destination.address, entry.address) for entry in packet.open_continue.entries}
    recipients = {SENDER.address, WATCHER.address}
    assert named == {(recipient, entry) for recipient in recipients for entry in (recipient, bytes(4))}


def test_the_reflector_answers_a_login_with_rate_request_acknowledgement_and_message_of_the_day(
    call: Call,
) -> None:
    to_watcher = [d.payload for d in call.inside if d.destination == WATCHER]
    types = [packet.header.data_type for payload in to_watcher if (packet := parse(payload))]
    login = [DataType.RATE_REQUEST, DataType.ACKNOWLEDGEMENT, *[DataType.MESSAGE_OF_THE_DAY] * 3]
    assert types[:5] == login
