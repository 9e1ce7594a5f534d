"""The view of an IPv4/UDP packet: what is refused, and checksums against a plain computation of RFC 1071."""

import struct

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rewriter.packet import (
    MAXIMUM_UDP_PAYLOAD_LENGTH,
    TCP,
    UDP,
    Endpoint,
    Flow,
    build_udp,
    is_checksum_valid,
    parse,
    parse_flow,
    source_of,
    udp_checksum,
)

SOURCE = Endpoint.parse("192.168.1.10:7648")
DESTINATION = Endpoint.parse("203.0.113.10:7649")
PAYLOAD = b"an odd payload, by count, of bytes."
PACKET = build_udp(SOURCE, DESTINATION, PAYLOAD)


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071, word by word, as slow and plain as its text."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def wire_checksum(packet: bytes) -> int:
    """The checksum the UDP datagram of a packet with a 20-byte IP header should carry."""
    datagram = packet[20:26] + bytes(2) + packet[28:]
    pseudo_header = packet[12:20] + struct.pack("!HH", UDP, len(datagram))
    return (0xFFFF - ones_complement_sum(pseudo_header + datagram)) or 0xFFFF


def replaced(packet: bytes, offset: int, new: bytes) -> bytes:
    return packet[:offset] + new + packet[offset + len(new) :]


def with_options(packet: bytes, options: bytes) -> bytes:
    header = bytearray(packet[:20] + options)
    header[0] = 0x40 | len(header) // 4
    header[2:4] = (len(packet) + len(options)).to_bytes(2, "big")
    header[10:12] = bytes(2)
    header[10:12] = (0xFFFF - ones_complement_sum(bytes(header))).to_bytes(2, "big")
    return bytes(header) + packet[20:]


def tcp_packet(segment: bytes) -> bytes:
    header = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(segment), 0, 64, TCP, 0)
    return header + SOURCE.address + DESTINATION.address + segment


endpoints = st.builds(Endpoint, st.binary(min_size=4, max_size=4), st.integers(0, 0xFFFF))
payloads = st.binary(max_size=99)


@given(endpoints, endpoints, payloads, st.booleans())
def test_what_is_built_is_read_back_and_valid(
    source: Endpoint, destination: Endpoint, payload: bytes, checksum: bool
) -> None:
    packet = build_udp(source, destination, payload, checksum=checksum)
    udp = parse(packet)
    assert udp is not None
    assert (udp.source, udp.destination, udp.payload) == (source, destination, payload)
    assert udp.checksum == (wire_checksum(packet) if checksum else 0)
    assert ones_complement_sum(packet[:20]) == 0xFFFF
    assert is_checksum_valid(packet)


@given(endpoints, endpoints, st.lists(payloads, min_size=2, max_size=2))
def test_incremental_checksum_equals_full_recomputation(
    source: Endpoint, destination: Endpoint, two: list[bytes]
) -> None:
    length = min(map(len, two))
    old, new = two[0][:length], two[1][:length]
    udp = parse(build_udp(source, destination, old))
    assert udp is not None
    assert udp.with_payload(new) == build_udp(source, destination, new)


@given(endpoints, endpoints, payloads)
def test_a_checksum_of_zero_stays_zero(source: Endpoint, destination: Endpoint, payload: bytes) -> None:
    udp = parse(build_udp(source, destination, payload, checksum=False))
    assert udp is not None
    assert udp.with_payload(payload[::-1]) == build_udp(source, destination, payload[::-1], checksum=False)


def test_a_result_of_zero_is_sent_as_ffff() -> None:
    # Choose the last word so that all words sum to 0xFFFF: their complement is 0.
    missing = 0xFFFF - ones_complement_sum(
        SOURCE.address + DESTINATION.address + struct.pack("!HHHHH", 17, 10, 7648, 7649, 10)
    )
    udp = parse(build_udp(SOURCE, DESTINATION, b"\x12\x34"))
    assert udp is not None
    packet = udp.with_payload(missing.to_bytes(2, "big"))
    assert packet == build_udp(SOURCE, DESTINATION, missing.to_bytes(2, "big"))
    assert packet[26:28] == b"\xff\xff"


def test_from_ffff_the_checksum_goes_on_right() -> None:
    missing = 0xFFFF - ones_complement_sum(
        SOURCE.address + DESTINATION.address + struct.pack("!HHHHH", 17, 10, 7648, 7649, 10)
    )
    udp = parse(build_udp(SOURCE, DESTINATION, missing.to_bytes(2, "big")))
    assert udp is not None
    assert udp.checksum == 0xFFFF
    assert udp.with_payload(b"\x12\x34") == build_udp(SOURCE, DESTINATION, b"\x12\x34")


@given(st.binary(min_size=len(PAYLOAD), max_size=len(PAYLOAD)), st.integers(1, 0xFFFF))
def test_a_wrong_checksum_stays_wrong(payload: bytes, checksum: int) -> None:
    assume(checksum % 0xFFFF != wire_checksum(PACKET) % 0xFFFF)
    udp = parse(replaced(PACKET, 26, checksum.to_bytes(2, "big")))
    assert udp is not None
    assert not is_checksum_valid(udp.packet)
    assert not is_checksum_valid(udp.with_payload(payload))


def test_the_ip_header_is_part_of_validity() -> None:
    assert is_checksum_valid(PACKET)
    assert not is_checksum_valid(replaced(PACKET, 8, b"\x01"))


@given(st.integers(1, 10))
def test_ip_options_are_stepped_over(words: int) -> None:
    packet = with_options(PACKET, b"\x01" * 4 * words)
    udp = parse(packet)
    assert udp is not None
    assert (udp.source, udp.destination, udp.payload) == (SOURCE, DESTINATION, PAYLOAD)
    assert is_checksum_valid(packet)
    assert udp.with_payload(PAYLOAD[::-1]) == with_options(
        build_udp(SOURCE, DESTINATION, PAYLOAD[::-1]), b"\x01" * 4 * words
    )


@pytest.mark.parametrize("payload", [b"", PAYLOAD[:-1], PAYLOAD + b"."])
def test_a_payload_of_another_length_is_refused(payload: bytes) -> None:
    udp = parse(PACKET)
    assert udp is not None
    with pytest.raises(ValueError, match="payload of"):
        udp.with_payload(payload)


REFUSED = {
    "empty": b"",
    "ipv6": replaced(PACKET, 0, b"\x65"),
    "header shorter than 20": replaced(
        replaced(PACKET, 0, b"\x44"), 20, (len(PACKET) - 16).to_bytes(2, "big")
    ),
    "header longer than the packet": replaced(PACKET[:40], 0, b"\x4f"),
    "cut by one byte": PACKET[:-1],
    "one byte too many": PACKET + b"\0",
    "total length too long": replaced(PACKET, 2, (len(PACKET) + 1).to_bytes(2, "big")),
    "total length too short": replaced(PACKET, 2, (len(PACKET) - 1).to_bytes(2, "big")),
    "first fragment": replaced(PACKET, 6, b"\x20\x00"),
    "last fragment": replaced(PACKET, 6, b"\x00\x01"),
    "udp length too long": replaced(PACKET, 24, (len(PACKET) - 19).to_bytes(2, "big")),
    "udp length too short": replaced(PACKET, 24, (len(PACKET) - 21).to_bytes(2, "big")),
    "udp length zero": replaced(PACKET, 24, b"\0\0"),
    "no room for the udp header": PACKET[:2] + b"\x00\x1b" + PACKET[4:24] + b"\x00\x07" + PACKET[26:27],
    "icmp": replaced(PACKET, 9, b"\x01"),
}


@pytest.mark.parametrize("packet", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_whole_packet_is_none(packet: bytes) -> None:
    assert parse(packet) is None
    assert parse_flow(packet) is None
    assert not is_checksum_valid(packet)


def test_dont_fragment_is_no_fragment() -> None:
    assert parse(replaced(PACKET, 6, b"\x40\x00")) is not None


@given(
    st.binary(max_size=80)
    | st.binary(max_size=60).map(lambda tail: b"\x45\x00" + bytes((0, 22 + len(tail))) + tail)
)
def test_no_bytes_make_it_raise(packet: bytes) -> None:
    udp, flow = parse(packet), parse_flow(packet)
    assert udp is None or flow == Flow(UDP, udp.source, udp.destination)


@given(st.integers(0, len(PACKET) - 1))
def test_every_truncation_is_none(length: int) -> None:
    assert parse(PACKET[:length]) is None


def test_a_flow_is_read_from_udp_and_from_tcp() -> None:
    segment = struct.pack("!HHIIBBHHH", SOURCE.port, DESTINATION.port, 0, 0, 0x50, 2, 0, 0, 0)
    assert parse_flow(PACKET) == Flow(UDP, SOURCE, DESTINATION)
    assert parse_flow(tcp_packet(segment)) == Flow(TCP, SOURCE, DESTINATION)
    assert parse_flow(tcp_packet(segment[:-1])) is None
    assert parse(tcp_packet(segment)) is None


def test_the_longest_payload_fits_and_one_more_byte_does_not() -> None:
    assert len(build_udp(SOURCE, DESTINATION, bytes(MAXIMUM_UDP_PAYLOAD_LENGTH))) == 0xFFFF
    with pytest.raises(ValueError, match="longer than"):
        build_udp(SOURCE, DESTINATION, bytes(MAXIMUM_UDP_PAYLOAD_LENGTH + 1))


@given(endpoints, endpoints, payloads)
def test_the_checksum_field_itself_does_not_enter(
    source: Endpoint, destination: Endpoint, payload: bytes
) -> None:
    datagram = build_udp(source, destination, payload)[20:]
    blanked = datagram[:6] + bytes(2) + datagram[8:]
    computed = udp_checksum(source.address, destination.address, datagram)
    assert computed == udp_checksum(source.address, destination.address, blanked) != 0


@given(endpoints)
def test_an_endpoint_is_written_as_it_is_read(endpoint: Endpoint) -> None:
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    ["", "192.0.2.2", "192.0.2.2:", "192.0.2.2:65536", "192.0.2.2:-1", "192.0.2:1", "[::1]:1", "192.0.2.2:٣"],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Endpoint.parse(text)


def test_the_sender_of_a_packet_that_lies_is_still_known() -> None:
    sent = build_udp(Endpoint.parse("192.168.1.10:7648"), Endpoint.parse("203.0.113.10:7648"), b"x" * 40)
    lying = sent[:24] + b"\x00\x09" + sent[26:]
    assert parse_flow(lying) is None
    assert source_of(lying) == bytes([192, 168, 1, 10])
    assert source_of(lying[:19]) is None
    assert source_of(b"\x60" + lying[1:]) is None
