"""Capture files, pcap and pcapng, read block by block, and written with other packets of the same length.

Rule 1: what is not a packet is handed on byte for byte, and of a packet only its octets can be replaced:
  time stamps, their resolution, options, comments and blocks that nobody here knows come out as they went in.
Rule 2: no length in the file is believed beyond LONGEST_BLOCK: a file that lies is a CaptureError, which
  names the offset, and never a matter of memory.

Not dpkt's or scapy's reader: both make floats of the times and give up what a pcapng has beside its packets.
Formats: pcap-savefile(5) and draft-ietf-opsawg-pcapng.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Final

LONGEST_BLOCK: Final = 1 << 24  # octets; libpcap's longest packet has 2**18
_MICROSECONDS: Final = 0xA1B2C3D4
_NANOSECONDS: Final = 0xA1B23C4D
_PCAP_HEADER: Final = 24
_PCAP_RECORD: Final = 16
_SECTION: Final = 0x0A0D0D0A
_BYTE_ORDER: Final = 0x1A2B3C4D
_SHORTEST_BLOCK: Final = 12
_END_OF_OPTIONS, _RESOLUTION, _TIME_OFFSET = 0, 9, 14
_SECOND_NS: Final = 1_000_000_000


class CaptureError(Exception):
    """No capture, or one that is cut or damaged; says where."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A packet as it was captured; `length` is what it had on the wire. `time_ns` None: the file has none."""

    number: int
    link_type: int
    time_ns: int | None
    octets: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the file, `frame` of it from offset `start`; None where the piece is no packet."""

    octets: bytes
    frame: Frame | None = None
    start: int = 0

    def with_packet(self, packet: bytes) -> bytes:
        """The piece with another packet; ValueError for one of another length."""
        if self.frame is None or len(packet) != len(self.frame.octets):
            raise ValueError("another packet must be as long as the one that was captured")
        return self.octets[: self.start] + packet + self.octets[self.start + len(packet) :]


@dataclass(frozen=True, slots=True)
class _Interface:
    """What a pcapng says of one: `ticks` a second, added to `offset_s`; `snap_length` 0 means no limit."""

    link_type: int
    snap_length: int
    ticks: int = 1_000_000
    offset_s: int = 0

    def time_ns(self, stamp: int) -> int:
        return self.offset_s * _SECOND_NS + stamp * _SECOND_NS // self.ticks


def blocks(file: BinaryIO) -> Iterator[Block]:
    """All pieces of the file in their order; CaptureError where it is none, or ends within one."""
    reader = _Reader(file)
    magic = reader.take(4, "a capture's first four octets")
    if int.from_bytes(magic, "big") == _SECTION:
        yield from _PcapNg(reader).blocks(magic)
    else:
        yield from _pcap_blocks(reader, magic)


class _Reader:
    """The file, and how far it was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offset = 0

    def take(self, count: int, what: str) -> bytes:
        """Exactly so many octets, CaptureError for fewer."""
        octets = self.take_or_end(count, what)
        if len(octets) < count:
            raise CaptureError(f"the file ends at octet {self.offset}, before {what}")
        return octets

    def take_or_end(self, count: int, what: str) -> bytes:
        """The same, or nothing at the file's end."""
        try:
            octets = self._file.read(count)
        except OSError as error:
            raise CaptureError(f"it can't be read: {error.strerror}") from error
        if octets and len(octets) < count:
            end = self.offset + len(octets)
            raise CaptureError(f"the file ends at octet {end}, within {what} that begins at {self.offset}")
        self.offset += len(octets)
        return octets


# --- pcap -------------------------------------------------------------------------------------------------


def _pcap_blocks(reader: _Reader, magic: bytes) -> Iterator[Block]:
    for order in "<>":
        (found,) = struct.unpack(order + "I", magic)
        if found in (_MICROSECONDS, _NANOSECONDS):
            break
    else:
        raise CaptureError(f"it begins with {magic.hex()}: neither a pcap nor a pcapng file")
    header = magic + reader.take(_PCAP_HEADER - len(magic), "the end of the pcap header")
    # The upper half says whether frames end with a check sequence: no matter here.
    link_type = struct.unpack_from(order + "I", header, 20)[0] & 0xFFFF
    tick_ns = 1 if found == _NANOSECONDS else 1000
    yield Block(header)
    number = 0
    while record := reader.take_or_end(_PCAP_RECORD, "the header of a packet"):
        number += 1
        seconds, ticks, captured, length = struct.unpack(order + "IIII", record)
        if captured > LONGEST_BLOCK:
            at = reader.offset - _PCAP_RECORD
            raise CaptureError(f"packet {number} at octet {at} claims {captured} octets: the file is damaged")
        octets = reader.take(captured, f"the end of packet {number}") if captured else b""
        time_ns = seconds * _SECOND_NS + ticks * tick_ns
        yield Block(record + octets, Frame(number, link_type, time_ns, octets, length), _PCAP_RECORD)


# --- pcapng -----------------------------------------------------------------------------------------------


class _Kind(IntEnum):
    """The blocks that are looked into; all others are handed on."""

    INTERFACE = 1
    OLD_PACKET = 2
    SIMPLE_PACKET = 3
    PACKET = 6


class _PcapNg:
    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._order = "<"
        self._interfaces: list[_Interface] = []
        self._number = 0

    def blocks(self, magic: bytes) -> Iterator[Block]:
        head = magic + self._reader.take(8, "the end of the section header")
        while head:
            start = self._reader.offset - len(head)
            if int.from_bytes(head[:4], "big") == _SECTION:
                self._begin_section(head, start)
            kind, length = struct.unpack(self._order + "II", head[:8])
            if not _SHORTEST_BLOCK <= length <= LONGEST_BLOCK or length % 4:
                raise CaptureError(f"the block at octet {start} claims {length} octets: the file is damaged")
            octets = head + (
                self._reader.take(length - len(head), "the end of a block") if length > 12 else b""
            )
            if octets[-4:] != head[4:8]:
                raise CaptureError(f"the block at octet {start} says another length at its end")
            try:
                yield self._block(kind, octets)
            except (struct.error, IndexError) as error:
                raise CaptureError(f"the block at octet {start} is damaged: {error}") from error
            head = self._reader.take_or_end(_SHORTEST_BLOCK, "a block")

    def _begin_section(self, head: bytes, start: int) -> None:
        for order in "<>":
            if struct.unpack(order + "I", head[8:12])[0] == _BYTE_ORDER:
                self._order, self._interfaces = order, []
                return
        raise CaptureError(f"the section at octet {start} has no byte-order magic")

    def _block(self, kind: int, octets: bytes) -> Block:
        match kind:
            case _Kind.INTERFACE:
                self._interfaces.append(self._interface(octets))
            case _Kind.PACKET:
                number, high, low, captured, length = self._unpack("IIIII", octets, 8)
                time_ns = self._interfaces[number].time_ns(high << 32 | low)
                return self._packet(octets, 28, number, time_ns, (captured, length))
            case _Kind.OLD_PACKET:
                number, _, high, low, captured, length = self._unpack("HHIIII", octets, 8)
                time_ns = self._interfaces[number].time_ns(high << 32 | low)
                return self._packet(octets, 28, number, time_ns, (captured, length))
            case _Kind.SIMPLE_PACKET:
                (length,) = self._unpack("I", octets, 8)
                captured = min(length, self._interfaces[0].snap_length or length)
                return self._packet(octets, 12, 0, None, (captured, length))
            case _:
                pass
        return Block(octets)

    def _packet(
        self, octets: bytes, start: int, interface: int, time_ns: int | None, lengths: tuple[int, int]
    ) -> Block:
        self._number += 1
        captured, length = lengths
        if start + captured > len(octets) - 4:
            raise IndexError(f"packet {self._number} claims {captured} octets, and the block ends before")
        packet = octets[start : start + captured]
        link_type = self._interfaces[interface].link_type
        return Block(octets, Frame(self._number, link_type, time_ns, packet, length), start)

    def _interface(self, octets: bytes) -> _Interface:
        link_type, _, snap_length = self._unpack("HHI", octets, 8)
        found = dict(self._options(octets[16:-4]))
        ticks, offset_s = 1_000_000, 0
        if _RESOLUTION in found:
            exponent = found[_RESOLUTION][0]
            ticks = 2 ** (exponent & 0x7F) if exponent & 0x80 else 10**exponent
        if _TIME_OFFSET in found:
            (offset_s,) = self._unpack("q", found[_TIME_OFFSET], 0)
        return _Interface(link_type, snap_length, ticks, offset_s)

    def _options(self, octets: bytes) -> Iterator[tuple[int, bytes]]:
        offset = 0
        while offset + 4 <= len(octets):
            code, length = self._unpack("HH", octets, offset)
            if code == _END_OF_OPTIONS:
                return
            yield code, octets[offset + 4 : offset + 4 + length]
            offset += 4 + (length + 3) // 4 * 4

    def _unpack(self, fields: str, octets: bytes, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + fields, octets, offset)
