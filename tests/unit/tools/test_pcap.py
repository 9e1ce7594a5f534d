"""`porthold pcap`: captures of a real call, translated and explained; files that lie; every link layer."""

import json
import struct
from collections import Counter
from io import BytesIO
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import dpkt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from rewriter.cuseeme import (
    Direction,
    Header,
    OpenContinue,
    encode_audio,
    encode_open_continue,
    encode_video,
    translate,
)
from rewriter.packet import Endpoint, build_udp, is_checksum_valid, parse
from tools.capture_file import CaptureError, Frame, blocks
from tools.cli import main
from tools.dissection import dissect
from tools.other_side import Gateway, Host, Outcome, other_side

DATA = Path(__file__).parents[2] / "data"
INSIDE, OUTSIDE = DATA / "call_inside.pcap", DATA / "call_outside.pcap"
CLIENTS = ("--private", "192.168.1.10:60211", "--private", "192.168.1.11:7648")
PUBLIC = Endpoint.parse("192.0.2.2:7648")
ANN = Endpoint.parse("192.168.1.10:7648")
PEER = Endpoint.parse("203.0.113.10:7648")
GATEWAY = Gateway(IPv4Address("192.0.2.2"), frozenset({7648}))
PAYLOAD = encode_open_continue(
    Header(address=ANN.address, port=7648, message=1), OpenContinue(user_name="Ann")
)
PACKET = build_udp(ANN, PEER, PAYLOAD)
CROSSED = build_udp(PUBLIC, PEER, translate(PAYLOAD, Direction.OUT, PUBLIC, ANN))
ETHERNET = bytes(12) + b"\x08\x00"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["pcap", *map(str, words)])


def datagrams(file: Path) -> Counter[tuple[bytes, bytes, bytes]]:
    """(source, destination, UDP octets) of each datagram that came in one piece, as dpkt reads them."""
    found: Counter[tuple[bytes, bytes, bytes]] = Counter()
    with file.open("rb") as capture:
        for _, frame in dpkt.pcap.Reader(capture):
            packet = dpkt.ethernet.Ethernet(frame).data
            if isinstance(packet, dpkt.ip.IP) and isinstance(packet.data, dpkt.udp.UDP) and len(frame) < 1500:
                found[packet.src, packet.dst, bytes(packet.data)] += 1
    return found


# --- the real call ----------------------------------------------------------------------------------------


def test_the_capture_from_inside_becomes_the_one_from_outside(tmp_path: Path) -> None:
    result = run(INSIDE, tmp_path / "out.pcap", "--public", "192.0.2.2")
    assert result.exit_code == 0
    assert "57 packets, 52 of them translated" in result.output
    # The outside has the same datagrams, checksums included; those that are fragments there are not compared.
    assert datagrams(tmp_path / "out.pcap") - datagrams(OUTSIDE) == Counter()
    assert len(datagrams(tmp_path / "out.pcap")) > 30


def test_the_capture_from_outside_becomes_the_one_from_inside(tmp_path: Path) -> None:
    assert run(OUTSIDE, tmp_path / "in.pcap", "--public", "192.0.2.2", *CLIENTS).exit_code == 0
    assert datagrams(tmp_path / "in.pcap") - datagrams(INSIDE) == Counter()
    assert len(datagrams(tmp_path / "in.pcap")) > 30


def test_there_and_back_is_the_same_file_to_the_octet(tmp_path: Path) -> None:
    there, back = tmp_path / "there.pcap", tmp_path / "back.pcap"
    assert run(INSIDE, there, "--public", "192.0.2.2").exit_code == 0
    assert there.read_bytes() != INSIDE.read_bytes()
    assert run(there, back, "--public", "192.0.2.2", *CLIENTS).exit_code == 0
    assert back.read_bytes() == INSIDE.read_bytes()


def test_one_direction_alone_leaves_the_other_as_it_was(tmp_path: Path) -> None:
    counts = {}
    for direction in ("out", "in", "both"):
        result = run(INSIDE, tmp_path / "x.pcap", "--public", "192.0.2.2", "--direction", direction, "--json")
        counts[direction] = json.loads(result.output)["translated"]
    assert counts["out"] > 0
    assert counts["in"] > 0
    assert counts["both"] == counts["out"] + counts["in"] == 52


def test_from_outside_nobody_guesses_whose_packet_it_was(tmp_path: Path) -> None:
    result = run(OUTSIDE, tmp_path / "in.pcap", "--public", "192.0.2.2", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["unchanged"]["unknown_host"] == 51
    assert (tmp_path / "in.pcap").read_bytes() == OUTSIDE.read_bytes()


def test_the_public_address_may_come_from_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "porthold.toml"
    file.write_text('[gateway]\nname = "g"\nlan = ["eth1"]\nwan = "eth0"\npublic_address = "192.0.2.2"\n')
    assert run(INSIDE, tmp_path / "out.pcap", "--config", file).exit_code == 0


def test_every_packet_of_the_call_is_explained_without_a_gap() -> None:
    result = run("--show", INSIDE, "--json")
    packets = json.loads(result.output)
    assert len(packets) == 52
    assert packets[0]["time"] == "2026-11-22T14:09:19.517420000Z"
    for packet in packets:
        offset = 0
        for field in packet["fields"]:
            assert field["offset"] == offset
            offset += field["length"]
        assert offset == packet["octets"]
        assert packet["checksum"] == "right"
    assert {"OpenContinue, hang-up, of 'InSuite'", "OpenContinue, hang-up, of 'InOCU'"} <= {
        packet["summary"] for packet in packets
    }


def test_people_see_what_each_field_means() -> None:
    result = run("--show", INSIDE)
    assert result.exit_code == 0
    for said in (
        "192.168.1.11:7648 → 203.0.113.10:7648  OpenContinue, open, or go on, of 'InSuite'",
        "13291                             the UDP header's 60211 in the wrong byte order",
        "the sender, as in the IP header",
        "a reflector's name for a participant",
        "Welcome to the test reflector",
        "no VAT header, or a lie",
        "52 CU-SeeMe packets; not shown: 4 a fragment; 1 not UDP",
    ):
        assert said in result.output


# --- what is left alone -----------------------------------------------------------------------------------


def frame_of(packet: bytes, link_type: int = 1, link: bytes = ETHERNET, cut: int = 0) -> Frame:
    octets = link + packet
    return Frame(1, link_type, 0, octets[: len(octets) - cut], len(octets))


@pytest.mark.parametrize(
    ("link_type", "link"),
    [
        (1, ETHERNET),
        (1, bytes(12) + b"\x81\x00\x00\x07\x08\x00"),
        (1, bytes(12) + b"\x88\xa8\x00\x01\x81\x00\x00\x07\x08\x00"),
        (0, b"\2\0\0\0"),
        (108, b"\0\0\0\2"),
        (101, b""),
        (228, b""),
        (12, b""),
        (113, bytes(14) + b"\x08\x00"),
        (276, b"\x08\x00" + bytes(18)),
    ],
)
@pytest.mark.parametrize("padding", [b"", b"\0" * 7])
def test_the_packet_is_found_behind_every_link_layer(link_type: int, link: bytes, padding: bytes) -> None:
    outcome, octets = other_side(frame_of(PACKET + padding, link_type, link), GATEWAY)
    assert (outcome, octets) == (Outcome.TRANSLATED, link + CROSSED + padding)


def changed(packet: bytes, **fields: tuple[int, bytes]) -> bytes:
    octets = bytearray(packet)
    for offset, new in fields.values():
        octets[offset : offset + len(new)] = new
    return bytes(octets)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (frame_of(PACKET, cut=1), Outcome.CUT),
        (frame_of(PACKET, cut=len(PACKET) - 5), Outcome.CUT),
        (frame_of(PACKET[:-1]), Outcome.LENGTHS_LIE),
        (frame_of(changed(PACKET, length=(24, b"\0\7"))), Outcome.LENGTHS_LIE),
        (frame_of(changed(PACKET, more=(6, b"\x20\0"))), Outcome.FRAGMENT),
        (frame_of(changed(PACKET, offset=(6, b"\0\1"))), Outcome.FRAGMENT),
        (frame_of(changed(PACKET, protocol=(9, b"\6"))), Outcome.NOT_UDP),
        (frame_of(changed(PACKET, version=(0, b"\x65"))), Outcome.NOT_IPV4),
        (frame_of(PACKET, link=bytes(12) + b"\x86\xdd"), Outcome.NOT_IPV4),
        (frame_of(PACKET, link_type=105), Outcome.UNKNOWN_LINK),
        (frame_of(build_udp(ANN, Endpoint(ANN.address, 7649), PAYLOAD)), Outcome.OTHER_FLOW),
        (frame_of(build_udp(ANN._replace(port=5000), PEER._replace(port=53), b"")), Outcome.OTHER_FLOW),
        (frame_of(build_udp(PEER, Endpoint.parse("8.8.8.8:7648"), PAYLOAD)), Outcome.OTHER_FLOW),
        (frame_of(build_udp(PEER, PUBLIC, PAYLOAD)), Outcome.UNKNOWN_HOST),
        (frame_of(b""), Outcome.LENGTHS_LIE),
        (Frame(1, 1, 0, b"", 0), Outcome.NOT_IPV4),
    ],
)
def test_what_cannot_be_translated_whole_is_left_and_named(frame: Frame, expected: Outcome) -> None:
    assert other_side(frame, GATEWAY) == (expected, frame.octets)


@given(
    st.binary(max_size=120),
    st.sampled_from([0, 1, 12, 101, 105, 108, 113, 276]),
    st.integers(min_value=0, max_value=50),
)
def test_no_frame_makes_it_fail_or_another_length(octets: bytes, link_type: int, more: int) -> None:
    for packet in (octets, ETHERNET + octets, PACKET[: len(octets)] + octets):
        frame = Frame(1, link_type, None, packet, len(packet) + more)
        _, crossed = other_side(frame, GATEWAY)
        assert len(crossed) == len(packet)


@given(st.binary(max_size=200), st.sampled_from(list(Direction)), st.booleans(), st.integers(1, 0xFFFF))
def test_checksums_are_right_and_none_stays_none(
    payload: bytes, direction: Direction, checksum: bool, port: int
) -> None:
    ends = (ANN._replace(port=port), PEER) if direction is Direction.OUT else (PEER, ANN._replace(port=port))
    packet = build_udp(*ends, payload, checksum=checksum)
    gateway = Gateway(GATEWAY.public, GATEWAY.ports, (Host(IPv4Network("192.168.1.10")),))
    outcome, crossed = gateway.cross(packet)
    assert outcome is Outcome.TRANSLATED
    assert is_checksum_valid(crossed)
    udp = parse(crossed)
    assert udp is not None
    assert (udp.checksum == 0) == (not checksum)


@given(st.binary(max_size=120), st.sampled_from([1, 3, 101, 104, 105, 200, 0xFFFF]))
def test_any_payload_is_explained_to_its_last_octet(tail: bytes, data_type: int) -> None:
    payload = bytes(22) + data_type.to_bytes(2, "big") + tail
    udp = parse(build_udp(ANN, PEER, payload))
    assert udp is not None
    fields = dissect(udp)
    if len(payload) < 26:
        assert fields is None
        return
    assert fields is not None
    assert [field.offset for field in fields[1:]] == [field.offset + field.length for field in fields[:-1]]
    assert fields[-1].offset + fields[-1].length == len(payload)


def test_speakers_and_clients_are_listed_one_by_one() -> None:
    audio = encode_audio(Header(address=ANN.address), b"12345", (PUBLIC.address, PEER.address))
    udp = parse(build_udp(ANN, PEER, audio))
    assert udp is not None
    found = {field.name: field.value for field in dissect(udp) or ()}
    assert (found["speaker[1]"], found["samples"]) == ("203.0.113.10", "3132333435")
    assert dissect_names(encode_video(Header(), b"abc"))[-2:] == ["length", "video"]


def dissect_names(payload: bytes) -> list[str]:
    udp = parse(build_udp(ANN, PEER, payload))
    assert udp is not None
    return [field.name for field in dissect(udp) or ()]


def test_a_name_from_the_network_cannot_command_a_terminal(tmp_path: Path) -> None:
    payload = bytes(22) + b"\0\x69" + bytes(6) + b"\x1b[31mred"
    file = tmp_path / "evil.pcap"
    file.write_bytes(pcap(101, build_udp(ANN, PEER, payload)))
    result = run("--show", file)
    assert "\x1b" not in result.output
    assert "\\x1b[31mred" in result.output


# --- files ------------------------------------------------------------------------------------------------


def pcap(link_type: int, *packets: bytes, order: str = "<", magic: int = 0xA1B2C3D4) -> bytes:
    octets = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)
    for number, packet in enumerate(packets):
        octets += struct.pack(order + "IIII", 1000 + number, 999_999, len(packet), len(packet)) + packet
    return octets


def pcapng_block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def pcapng(order: str, *packets: bytes) -> bytes:
    """A section with two interfaces (Ethernet, raw in nanoseconds), a comment, and each packet three ways."""
    section = struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1)
    options = struct.pack(order + "HHB3xHH", 9, 1, 9, 0, 0)
    found = [
        pcapng_block(order, 0x0A0D0D0A, section),
        pcapng_block(order, 1, struct.pack(order + "HHI", 1, 0, 0)),
        pcapng_block(order, 1, struct.pack(order + "HHI", 101, 0, 0) + options),
        pcapng_block(order, 0x0BAD, b"a comment that nobody here knows"),
    ]
    for packet in packets:
        framed = ETHERNET + packet
        lengths = struct.pack(order + "II", len(framed), len(framed))
        comment = struct.pack(order + "HH8s", 1, 8, b"a remark")
        padded = framed + bytes(-len(framed) % 4)
        found += [
            pcapng_block(order, 6, struct.pack(order + "III", 0, 0, 7) + lengths + padded + comment),
            pcapng_block(order, 2, struct.pack(order + "HHII", 0, 0, 0, 8) + lengths + framed),
            pcapng_block(order, 3, struct.pack(order + "I", len(framed)) + framed),
            pcapng_block(order, 6, struct.pack(order + "IIIII", 1, 0, 9, len(packet), len(packet)) + packet),
        ]
    return b"".join(found)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
def test_both_byte_orders_and_clocks_of_pcap(order: str, magic: int, tmp_path: Path) -> None:
    source, target = tmp_path / "in.pcap", tmp_path / "out.pcap"
    source.write_bytes(pcap(101, PACKET, b"", order=order, magic=magic))
    assert run(source, target, "--public", "192.0.2.2").exit_code == 0
    assert target.read_bytes() == pcap(101, CROSSED, b"", order=order, magic=magic)
    (shown,) = json.loads(run("--show", source, "--json").output)
    assert shown["time"] == "1970-01-01T00:16:40." + ("999999000Z" if magic == 0xA1B2C3D4 else "000999999Z")


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_packet_of_a_pcapng_and_nothing_else_of_it_is_changed(order: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.pcapng", tmp_path / "out.pcapng"
    source.write_bytes(pcapng(order, PACKET, PACKET[:-1]) + pcapng("<", PACKET))
    assert run(source, target, "--public", "192.0.2.2").exit_code == 0
    assert target.read_bytes() == pcapng(order, CROSSED, PACKET[:-1]) + pcapng("<", CROSSED)
    times = [shown["time"] for shown in json.loads(run("--show", source, "--json").output)]
    zero = "1970-01-01T00:00:00"
    assert times[:4] == [f"{zero}.000007000Z", f"{zero}.000008000Z", None, f"{zero}.000000009Z"]


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (b"", "the file ends at octet 0, before a capture's first four octets"),
        (b"hello, world", "it begins with 68656c6c: neither a pcap nor a pcapng file"),
        (pcap(1)[:20], "the file ends at octet 20, within the end of the pcap header"),
        (pcap(1, PACKET)[:30], "the file ends at octet 30, within the header of a packet"),
        (pcap(1, PACKET)[:-1], "within the end of packet 1 that begins at 40"),
        (pcap(1) + b"\xff" * 16, "packet 1 at octet 24 claims 4294967295 octets: the file is damaged"),
        (pcapng("<", PACKET)[:-1], "the file ends at octet"),
        (pcapng("<")[:8] + bytes(20), "the section at octet 0 has no byte-order magic"),
        (pcapng("<") + struct.pack("<III", 5, 13, 0), "claims 13 octets: the file is damaged"),
        (pcapng("<") + struct.pack("<III", 5, 12, 16), "says another length at its end"),
        (pcapng("<")[:28] + pcapng_block("<", 6, bytes(20)), "the block at octet 28 is damaged"),
        (pcapng("<") + pcapng_block("<", 6, b"\0" * 12 + b"\xff" * 8), "claims 4294967295 octets"),
    ],
)
def test_a_damaged_file_is_named_with_the_place_and_nothing_is_written(
    octets: bytes, complaint: str, tmp_path: Path
) -> None:
    source = tmp_path / "bad.pcap"
    source.write_bytes(octets)
    for words in ((source, tmp_path / "out.pcap", "--public", "192.0.2.2"), ("--show", source)):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert complaint in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["bad.pcap"]


@given(st.data())
def test_a_file_with_any_octet_changed_is_read_or_refused(data: st.DataObject) -> None:
    files = [INSIDE.read_bytes()[:1200], pcapng("<", PACKET), pcapng(">", PACKET)]
    octets = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    read = bytearray()
    try:
        for block in blocks(BytesIO(octets)):
            read += block.octets if block.frame is None else block.with_packet(block.frame.octets)
    except CaptureError:
        pass
    assert octets.startswith(read)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((INSIDE,), "Say where the translated capture goes (OUT), or --show."),
        (("--show", INSIDE, "out.pcap"), "--show writes no file"),
        (("--show", INSIDE, "--public", "192.0.2.2"), "--show translates nothing"),
        ((INSIDE, "out.pcap"), "--public ADDRESS"),
        ((INSIDE, "/nowhere/out.pcap", "--public", "192.0.2.2"), "/nowhere/out.pcap can't be written"),
        ((INSIDE, "out.pcap", "--public", "1.2.3"), "'1.2.3' is no IPv4 address"),
        ((INSIDE, "out.pcap", "--public", "192.0.2.2", "--private", "192.168.1.1:0"), "is no host like"),
    ],
)
def test_wrong_use_says_what_to_do(
    words: tuple[str | Path, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.pcap.DEFAULT_CONFIG", tmp_path / "none.toml")
    result = run(*words)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())
