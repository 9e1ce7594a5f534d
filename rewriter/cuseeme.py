"""CU-SeeMe payloads: what a NAT rewrites in them, a view of them, builders for simulated clients and tests.

Rule 1: `translate` raises on no payload, keeps its length, and changes no byte that is not named below.
Rule 2: nothing here believes a length or a count in the packet beyond the bytes that are there.
Rule 3: port fields are never judged: one real client writes its own little-endian.

What is rewritten (offsets into the UDP payload, integers big-endian):

- out: `addr` (12), unless 0, becomes the public address; where `family` (8) is 2, a reflector on the LAN
  relays for others, so there only if it equals the sender's own private address. `port` (10) follows if it
  equalled the private port.
- in: `dest_addr` (4), unless 0, becomes the private address; `dest_port` (2) follows if it equalled the
  public port, but not in an OpenContinue, where that field is the conference ID.
- in, OpenContinue: the first client entry equal to the public address becomes the private address.
- audio: every speaker address that is our own is translated.
"""

import struct
from dataclasses import astuple, dataclass, replace
from enum import Enum, IntEnum
from typing import Final, Self

from rewriter.packet import Endpoint

__all__ = [
    "HEADER_LENGTH",
    "NO_ADDRESS",
    "OPEN_CONTINUE_LENGTH",
    "USER_NAME_LENGTH",
    "WINDOWS_FLAG",
    "ClientEntry",
    "CuSeeMePacket",
    "DataType",
    "DestinationFamily",
    "Direction",
    "Endpoint",
    "Family",
    "Header",
    "Message",
    "OpenContinue",
    "encode_audio",
    "encode_open_continue",
    "encode_payload",
    "encode_video",
    "parse",
    "translate",
]

HEADER_LENGTH: Final = 26
OPEN_CONTINUE_LENGTH: Final = 56
CLIENT_ENTRY_LENGTH: Final = 12
USER_NAME_LENGTH: Final = 19
WINDOWS_FLAG: Final = 8
NO_ADDRESS: Final = bytes(4)

_DESTINATION_PORT = 2
_DESTINATION_ADDRESS = 4
_FAMILY = 8
_PORT = 10
_ADDRESS = 12
_DATA_TYPE = 22
_CLIENT_COUNT = 26
_SPEAKER_COUNT = 26
_SPEAKERS = 34
_SPEAKER_COUNT_BITS = 0x3F

_HEADER = struct.Struct("!HH4sHH4sIHHH")
_OPEN_CONTINUE = struct.Struct("!HI20sBBBB")
_CLIENT_ENTRY = struct.Struct("!4sBBBBHH")
_VAT_HEADER = struct.Struct("!BBHI")


class DataType(IntEnum):
    """The types that something here names; all others are passed on as they are."""

    SMALL_VIDEO = 1
    BIG_VIDEO = 2
    AUDIO = 3
    ACKNOWLEDGEMENT = 100
    OPEN_CONTINUE = 101
    TEXT_THEN_DISCONNECT = 104
    MESSAGE_OF_THE_DAY = 105
    RATE_REQUEST = 110
    RATE_REPLY = 111


class Message(IntEnum):
    """What a packet says within its type."""

    MORE_OF_FRAME = 0
    OPEN = 1
    ACKNOWLEDGEMENT = 2
    CLOSE = 6
    END_OF_FRAME = 20


class Family(IntEnum):
    """Who the source is."""

    CLIENT = 1
    REFLECTOR = 2


class DestinationFamily(IntEnum):
    """Whom a packet is for; EXAMINE is what clients write into OpenContinue."""

    EVERYBODY = 0
    PRIVATE = 1
    EXAMINE = 2


class Direction(Enum):
    """Which way a packet crosses the gateway: OUT from the LAN, IN from the Internet."""

    OUT = "out"
    IN = "in"


def translate(payload: bytes, direction: Direction, public: Endpoint, private: Endpoint) -> bytes:
    """Return the payload as it has to look on the other side of the NAT; unchanged if shorter than 26 bytes.

    `public` and `private` are the two faces of the inside host in this packet's own flow: what the UDP source
    is after and before source NAT (out), the UDP destination before and after destination NAT (in).
    ValueError if their addresses are not 4 bytes.
    """
    if len(payload) < HEADER_LENGTH:
        return payload
    rewritten = bytearray(payload)
    data_type = _word(payload, _DATA_TYPE)
    if direction is Direction.OUT:
        own, other = private.address, public.address
        _translate_source(rewritten, public, private)
    else:
        own, other = public.address, private.address
        _translate_destination(rewritten, public, private)
        if data_type == DataType.OPEN_CONTINUE:
            _translate_first_client_entry(rewritten, own, other)
    if data_type == DataType.AUDIO:
        _translate_speakers(rewritten, own, other)
    if len(rewritten) != len(payload):
        raise ValueError("an endpoint's address is not 4 bytes")
    return bytes(rewritten)


def _translate_source(rewritten: bytearray, public: Endpoint, private: Endpoint) -> None:
    address = rewritten[_ADDRESS : _ADDRESS + 4]
    if address == NO_ADDRESS or (
        _word(rewritten, _FAMILY) == Family.REFLECTOR and address != private.address
    ):
        return
    rewritten[_ADDRESS : _ADDRESS + 4] = public.address
    _follow_port(rewritten, _PORT, private.port, public.port)


def _translate_destination(rewritten: bytearray, public: Endpoint, private: Endpoint) -> None:
    if rewritten[_DESTINATION_ADDRESS : _DESTINATION_ADDRESS + 4] == NO_ADDRESS:
        return
    rewritten[_DESTINATION_ADDRESS : _DESTINATION_ADDRESS + 4] = private.address
    if _word(rewritten, _DATA_TYPE) != DataType.OPEN_CONTINUE:
        _follow_port(rewritten, _DESTINATION_PORT, public.port, private.port)


def _follow_port(rewritten: bytearray, offset: int, own: int, other: int) -> None:
    if _word(rewritten, offset) == own:
        rewritten[offset : offset + 2] = other.to_bytes(2, "big")


def _translate_first_client_entry(rewritten: bytearray, own: bytes, other: bytes) -> None:
    # Only the first: a second one is another workstation behind the same public address, not ours to claim.
    for number in range(_present_entries(rewritten)):
        offset = OPEN_CONTINUE_LENGTH + number * CLIENT_ENTRY_LENGTH
        if rewritten[offset : offset + 4] == own:
            rewritten[offset : offset + 4] = other
            return


def _translate_speakers(rewritten: bytearray, own: bytes, other: bytes) -> None:
    if len(rewritten) < _SPEAKERS:
        return
    # A real client writes no VAT header at all and so declares up to 63 speakers: a mere bound.
    declared = rewritten[_SPEAKER_COUNT] & _SPEAKER_COUNT_BITS
    for number in range(min(declared, (len(rewritten) - _SPEAKERS) // 4)):
        offset = _SPEAKERS + number * 4
        if rewritten[offset : offset + 4] == own:
            rewritten[offset : offset + 4] = other


def _present_entries(payload: bytes | bytearray) -> int:
    """Count the client entries that are declared and whole, 0 if the payload ends before them."""
    if len(payload) <= OPEN_CONTINUE_LENGTH:
        return 0
    return min(_word(payload, _CLIENT_COUNT), (len(payload) - OPEN_CONTINUE_LENGTH) // CLIENT_ENTRY_LENGTH)


def _word(data: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The 26 bytes at the start of every payload, in their order; addresses are 4 bytes in network order."""

    destination_family: int = DestinationFamily.EVERYBODY
    destination_port: int = 0
    destination_address: bytes = NO_ADDRESS
    family: int = Family.CLIENT
    port: int = 0
    address: bytes = NO_ADDRESS
    sequence: int = 0
    message: int = 0
    data_type: int = 0
    packet_length: int = HEADER_LENGTH

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read the header of a payload of at least 26 bytes (else struct.error)."""
        names = cls.__dataclass_fields__
        return cls(**dict(zip(names, _HEADER.unpack_from(payload), strict=True)))

    def encode(self) -> bytes:
        """Write the 26 bytes."""
        return _HEADER.pack(*astuple(self))


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """One other participant as an OpenContinue lists it: whether the packet's sender watches and hears it."""

    address: bytes
    flags: int = 0
    auxiliary_prune: int = 0
    will_receive: int = 0
    will_send: int = 0
    packets_expected: int = 0
    packets_received: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenContinue:
    """The body of an OpenContinue: `client_count` is what the packet says, `entries` what is there."""

    client_count: int = 0
    sequence: int = 0
    user_name: str = ""
    send_mode: int = 1
    receive_mode: int = 1
    flags: int = WINDOWS_FLAG
    version: int = 0
    entries: tuple[ClientEntry, ...] = ()
    extras: bytes = b""


@dataclass(frozen=True, slots=True)
class CuSeeMePacket:
    """A payload of at least 26 bytes; `open_continue` is None for other types and below 56 bytes."""

    header: Header
    body: bytes
    open_continue: OpenContinue | None

    @property
    def is_open_continue(self) -> bool:
        """Whether the type is 101, however short the packet."""
        return self.header.data_type == DataType.OPEN_CONTINUE

    @property
    def is_new_call(self) -> bool:
        """Whether this opens or keeps a call: OpenContinue with message 1."""
        return self.is_open_continue and self.header.message == Message.OPEN

    @property
    def is_hang_up(self) -> bool:
        """Whether this ends a call: OpenContinue with message 6. Real clients send one, two or none."""
        return self.is_open_continue and self.header.message == Message.CLOSE

    @property
    def user_name(self) -> str | None:
        """What the packet says of the person, printable; None if it says nothing."""
        return (self.open_continue.user_name or None) if self.open_continue else None


def parse(payload: bytes) -> CuSeeMePacket | None:
    """View a payload; None if it is shorter than the header. Never raises."""
    if len(payload) < HEADER_LENGTH:
        return None
    header = Header.decode(payload)
    is_whole = header.data_type == DataType.OPEN_CONTINUE and len(payload) >= OPEN_CONTINUE_LENGTH
    open_continue = _decode_open_continue(payload) if is_whole else None
    return CuSeeMePacket(header, payload[HEADER_LENGTH:], open_continue)


def _decode_open_continue(payload: bytes) -> OpenContinue:
    count, sequence, name, send_mode, receive_mode, flags, version = _OPEN_CONTINUE.unpack_from(
        payload, HEADER_LENGTH
    )
    end_of_entries = OPEN_CONTINUE_LENGTH + _present_entries(payload) * CLIENT_ENTRY_LENGTH
    entries = _CLIENT_ENTRY.iter_unpack(payload[OPEN_CONTINUE_LENGTH:end_of_entries])
    return OpenContinue(
        client_count=count,
        sequence=sequence,
        user_name=_decode_user_name(name, is_windows=bool(flags & WINDOWS_FLAG)),
        send_mode=send_mode,
        receive_mode=receive_mode,
        flags=flags,
        version=version,
        entries=tuple(ClientEntry(*entry) for entry in entries),
        extras=payload[end_of_entries:],
    )


def _decode_user_name(field: bytes, *, is_windows: bool) -> str:
    """Read the Pascal string: anyone may have written it, and it ends in logs and on terminals."""
    raw = field[1 : 1 + field[0]].partition(b"\0")[0]  # the 20 bytes of the field bound a length that lies
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = raw.decode("cp1252" if is_windows else "mac_roman", errors="replace")
    printable = (character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return "".join(printable).strip()


def encode_payload(header: Header, body: bytes = b"") -> bytes:
    """Write any packet; `packet_length` is set from the body."""
    return replace(header, packet_length=HEADER_LENGTH + len(body)).encode() + body


def encode_open_continue(header: Header, body: OpenContinue) -> bytes:
    """Write an OpenContinue; the message (Message.OPEN or CLOSE) is the header's, type and length are set.

    `client_count` is written as given (it may lie), but never below the number of entries. The user name is
    cut to 19 bytes.
    """
    name = body.user_name.encode()[:USER_NAME_LENGTH].decode(errors="ignore").encode()
    fixed = _OPEN_CONTINUE.pack(
        max(body.client_count, len(body.entries)),
        body.sequence,
        bytes((len(name),)) + name,
        body.send_mode,
        body.receive_mode,
        body.flags,
        body.version,
    )
    entries = b"".join(_CLIENT_ENTRY.pack(*astuple(entry)) for entry in body.entries)
    return encode_payload(replace(header, data_type=DataType.OPEN_CONTINUE), fixed + entries + body.extras)


def encode_video(header: Header, data: bytes, data_type: int = DataType.SMALL_VIDEO) -> bytes:
    """Write a video packet; the header's message says whether more of the frame follows."""
    return encode_payload(replace(header, data_type=data_type), len(data).to_bytes(2, "big") + data)


def encode_audio(
    header: Header, samples: bytes, speakers: tuple[bytes, ...] = (), timestamp: int = 0
) -> bytes:
    """Write an audio packet with at most 63 speaker addresses of 4 bytes each (more: ValueError)."""
    if len(speakers) > _SPEAKER_COUNT_BITS:
        raise ValueError(f"{len(speakers)} speakers do not fit the count's 6 bits")
    body = _VAT_HEADER.pack(len(speakers), 0, 0, timestamp) + b"".join(speakers) + samples
    return encode_payload(replace(header, data_type=DataType.AUDIO), body)
