"""A CU-SeeMe packet explained field by field: where, what it is called, what it says, what that means.

Rule: like `rewriter.cuseeme`, nothing here raises on a payload or believes a count in it; but here what the
packet itself says is shown, not what a translation would make of it. Source: cuseeme-protocol.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rewriter.cuseeme import (
    HEADER_LENGTH,
    NO_ADDRESS,
    OPEN_CONTINUE_LENGTH,
    CuSeeMePacket,
    DataType,
    Header,
    OpenContinue,
    parse,
)
from rewriter.packet import Endpoint, UdpPacket, format_address

TYPES: Final[Mapping[int, str]] = {
    1: "small video (160×120)",
    2: "big video (320×240)",
    3: "audio",
    100: "acknowledgement",
    101: "OpenContinue",
    104: "text, then disconnect",
    105: "message of the day",
    106: "reflector to reflector",
    107: "auxiliary stream",
    110: "rate request",
    111: "rate reply",
    200: "White Pine video",
    0x80C8: "White Pine video",
    256: "auxiliary control",
    257: "auxiliary data (chat)",
}
MESSAGES: Final[Mapping[int, str]] = {
    1: "open, or go on",
    2: "of what was sent",
    6: "hang-up",
    0xFFFF: "wait for acknowledgement",
}
VIDEO_MESSAGES: Final[Mapping[int, str]] = {0: "more of this frame follows", 20: "end of frame"}
VIDEO: Final = (1, 2, 200, 0x80C8)
DESTINATION_FAMILIES: Final[Mapping[int, str]] = {0: "everybody", 1: "dest_addr only", 2: "examine"}
FAMILIES: Final[Mapping[int, str]] = {1: "a client", 2: "a reflector"}
FLAGS: Final[Mapping[int, str]] = {
    0x01: "receives audio",
    0x02: "sends audio",
    0x04: "lurker audio",
    0x08: "Windows",
    0x10: "private audio",
    0x20: "send version",
    0x80: "accept-close-my-video",
}
_SHOWN_OCTETS: Final = 16
_SPEAKERS_AT: Final = 34
_ENTRY: Final = 12
_TEXT_AT: Final[Mapping[int, int]] = {DataType.TEXT_THEN_DISCONNECT: 29, DataType.MESSAGE_OF_THE_DAY: 30}
"""Where the text begins, as a reflector of 2006 writes it; its length stands in the octet before."""


@dataclass(frozen=True, slots=True)
class Field:
    """`offset` and `length` are octets of the UDP payload; `meaning` may be empty."""

    offset: int
    length: int
    name: str
    value: str | int
    meaning: str = ""


def dissect(udp: UdpPacket) -> list[Field] | None:
    """All fields in their order, without a gap; None for a payload shorter than the header."""
    seen = parse(udp.payload)
    if seen is None:
        return None
    return [*_header(seen, udp), *_body(seen, udp.payload)]


def summary(seen: CuSeeMePacket) -> str:
    """One line on what it is."""
    header = seen.header
    said = [TYPES.get(header.data_type, f"type {header.data_type}")]
    if meaning := _message(header):
        said.append(meaning)
    if seen.user_name is not None:
        said.append(f"of {seen.user_name!r}")
    return ", ".join(said)


def _header(seen: CuSeeMePacket, udp: UdpPacket) -> Iterator[Field]:
    header = seen.header
    conference = (
        "the conference" if seen.is_open_continue else _port_meaning(header.destination_port, udp.destination)
    )
    yield Field(
        0,
        2,
        "dest_family",
        header.destination_family,
        DESTINATION_FAMILIES.get(header.destination_family, ""),
    )
    yield Field(2, 2, "dest_port", header.destination_port, conference)
    yield Field(4, 4, "dest_addr", *_address(header.destination_address, udp.destination, "the receiver"))
    yield Field(8, 2, "family", header.family, FAMILIES.get(header.family, ""))
    yield Field(10, 2, "port", header.port, _port_meaning(header.port, udp.source))
    yield Field(12, 4, "addr", *_address(header.address, udp.source, "the sender"))
    yield Field(16, 4, "seq", header.sequence)
    yield Field(20, 2, "message", header.message, _message(header))
    yield Field(
        22, 2, "data_type", header.data_type, TYPES.get(header.data_type, "unknown, passed on as it is")
    )
    present = len(udp.payload)
    lies = "" if header.packet_length == present else f"but the payload has {present} octets"
    yield Field(24, 2, "packet_len", header.packet_length, lies)


def _message(header: Header) -> str:
    if header.data_type in VIDEO:
        return VIDEO_MESSAGES.get(header.message, "")
    return MESSAGES.get(header.message, "")


def _address(address: bytes, end: Endpoint, role: str) -> tuple[str, str]:
    text = format_address(address)
    if address == NO_ADDRESS:
        return text, "nobody in particular"
    if address == end.address:
        return text, f"{role}, as in the IP header"
    if address[0] == 127:
        return text, "a reflector's name for a participant"
    return text, f"not {role}: the IP header has {format_address(end.address)}"


def _port_meaning(port: int, end: Endpoint) -> str:
    if port == end.port:
        return "as in the UDP header"
    if port == int.from_bytes(end.port.to_bytes(2, "little"), "big"):
        return f"the UDP header's {end.port} in the wrong byte order, as one client writes it"
    return ""


def _body(seen: CuSeeMePacket, payload: bytes) -> Iterator[Field]:
    kind = seen.header.data_type
    if seen.open_continue is not None:
        yield from _open_continue(seen.open_continue, payload)
    elif kind in (DataType.SMALL_VIDEO, DataType.BIG_VIDEO) and len(payload) >= HEADER_LENGTH + 2:
        said = int.from_bytes(payload[HEADER_LENGTH : HEADER_LENGTH + 2], "big")
        there = len(payload) - HEADER_LENGTH - 2
        yield Field(HEADER_LENGTH, 2, "length", said, "" if said == there else f"but {there} octets follow")
        yield from _rest(payload, HEADER_LENGTH + 2, "video")
    elif kind == DataType.AUDIO and len(payload) >= _SPEAKERS_AT:
        yield from _audio(payload)
    elif kind in _TEXT_AT:
        yield from _text(payload, _TEXT_AT[kind])
    else:
        yield from _rest(payload, HEADER_LENGTH, "body")


def _open_continue(body: OpenContinue, payload: bytes) -> Iterator[Field]:
    there = len(body.entries)
    lies = "" if body.client_count == there else f"but {there} whole entries are there"
    yield Field(26, 2, "client_count", body.client_count, lies)
    yield Field(28, 4, "seq_no", body.sequence)
    yield Field(32, 20, "user_name", body.user_name)
    yield Field(52, 1, "send_mode", body.send_mode)
    yield Field(53, 1, "recv_mode", body.receive_mode)
    yield Field(
        54,
        1,
        "flags",
        f"{body.flags:#04x}",
        ", ".join(said for bit, said in FLAGS.items() if body.flags & bit),
    )
    yield Field(55, 1, "version", body.version)
    for number, entry in enumerate(body.entries):
        at, name = OPEN_CONTINUE_LENGTH + number * _ENTRY, f"client[{number}]"
        yield Field(at, 4, f"{name}.address", format_address(entry.address))
        yield Field(at + 4, 1, f"{name}.flags", f"{entry.flags:#04x}")
        yield Field(at + 5, 1, f"{name}.aux_prune", entry.auxiliary_prune)
        yield Field(
            at + 6,
            1,
            f"{name}.will_recv",
            entry.will_receive,
            "the sender watches" if entry.will_receive else "",
        )
        yield Field(at + 7, 1, f"{name}.will_send", entry.will_send)
        yield Field(at + 8, 2, f"{name}.expected", entry.packets_expected)
        yield Field(at + 10, 2, f"{name}.received", entry.packets_received)
    yield from _rest(payload, OPEN_CONTINUE_LENGTH + there * _ENTRY, "extras")


def _audio(payload: bytes) -> Iterator[Field]:
    first, flags = payload[26], payload[27]
    declared, room = first & 0x3F, (len(payload) - _SPEAKERS_AT) // 4
    lies = "" if declared <= room else f"but there is room for {room}: no VAT header, or a lie"
    yield Field(26, 1, "speaker_count", declared, lies)
    yield Field(27, 1, "format", flags & 0x1F)
    yield Field(28, 2, "conference", int.from_bytes(payload[28:30], "big"))
    yield Field(30, 4, "timestamp", int.from_bytes(payload[30:34], "big"))
    speakers = declared if declared <= room else 0
    for number in range(speakers):
        at = _SPEAKERS_AT + number * 4
        yield Field(at, 4, f"speaker[{number}]", format_address(payload[at : at + 4]))
    yield from _rest(payload, _SPEAKERS_AT + speakers * 4, "samples")


def _text(payload: bytes, at: int) -> Iterator[Field]:
    text = payload[at:].decode("cp1252", errors="replace")
    yield from _rest(payload[:at], HEADER_LENGTH, "text_head")
    if text:
        yield Field(at, len(text), "text", text)


def _rest(payload: bytes, at: int, name: str) -> Iterator[Field]:
    left = payload[at:]
    if left:
        shown = left[:_SHOWN_OCTETS].hex() + ("…" if len(left) > _SHOWN_OCTETS else "")
        yield Field(at, len(left), name, shown, f"{len(left)} octets")
