"""IPv4 packets as NFQUEUE hands them over: whose flow, which payload, and the same packet with another one.

Rule 1: a packet whose lengths do not agree to the byte is none here: `parse` and `parse_flow` answer None.
Rule 2: what is replaced keeps its length: all to correct are the checksums, by the difference alone.
Rule 3: a checksum of 0 (none was sent) stays 0; a computed 0 is sent as 0xFFFF.

The arithmetic: the ones' complement sum of 16-bit words is the bytes read as one big-endian number, modulo
0xFFFF, because 2**16 leaves 1. So `0xFFFF - number % 0xFFFF` is the checksum with rule 3 in it: never 0.
"""

import ipaddress
import struct
from dataclasses import dataclass
from typing import NamedTuple, Self

TCP = 6
UDP = 17
UDP_HEADER_LENGTH = 8
MAXIMUM_UDP_PAYLOAD_LENGTH = 0xFFFF - 20 - UDP_HEADER_LENGTH

_MINIMUM_IP_HEADER_LENGTH = 20
_MINIMUM_TCP_HEADER_LENGTH = 20
# "More fragments" and the offset; the reserved and "don't fragment" bits are no matter.
_FRAGMENT_BITS = 0x3FFF
_TIME_TO_LIVE_HOPS = 64
_IP_CHECKSUM = slice(10, 12)
_ADDRESSES = slice(12, 20)


class Endpoint(NamedTuple):
    """An IPv4 address (4 bytes, network order) and a port."""

    address: bytes
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `192.0.2.2:7648`; raises ValueError for anything else."""
        address, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
            raise ValueError(f"not an address and port: {text!r}")
        return cls(ipaddress.IPv4Address(address).packed, int(port))

    def __str__(self) -> str:
        """Write `192.0.2.2:7648`."""
        return f"{format_address(self.address)}:{self.port}"


class Flow(NamedTuple):
    """What a claim is decided by: the protocol number (TCP or UDP) and both ends."""

    protocol: int
    source: Endpoint
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class UdpPacket:
    """A whole IPv4/UDP packet whose lengths agree; `packet` holds the bytes from the IP header on."""

    packet: bytes
    source: Endpoint
    destination: Endpoint
    payload_offset: int

    @property
    def payload(self) -> bytes:
        """The bytes after the UDP header."""
        return self.packet[self.payload_offset :]

    @property
    def checksum(self) -> int:
        """The UDP checksum as sent; 0 means that none was."""
        return _word(self.packet, self.payload_offset - 2)

    def with_payload(self, payload: bytes) -> bytes:
        """Return the packet with another payload, its UDP checksum corrected; ValueError for another length.

        RFC 1624, equation 3: only the difference enters, so a checksum that was wrong stays wrong, and the
        receiver still drops the packet.
        """
        if len(payload) != len(self.packet) - self.payload_offset:
            raise ValueError(f"payload of {len(payload)} bytes for {len(self.packet) - self.payload_offset}")
        checksum = self.packet[self.payload_offset - 2 : self.payload_offset]
        if self.checksum != 0:
            checksum = _corrected(checksum, _word_sum(payload) - _word_sum(self.payload))
        return b"".join((self.packet[: self.payload_offset - 2], checksum, payload))

    def with_addresses(self, source: bytes, destination: bytes) -> bytes:
        """Return the packet between other hosts (4 bytes each); checksums that were wrong stay wrong."""
        addresses = source + destination
        if len(addresses) != len(self.packet[_ADDRESSES]):
            raise ValueError("an address is not 4 bytes")
        difference = _word_sum(addresses) - _word_sum(self.packet[_ADDRESSES])
        readdressed = bytearray(self.packet)
        readdressed[_ADDRESSES] = addresses
        readdressed[_IP_CHECKSUM] = _corrected(self.packet[_IP_CHECKSUM], difference)
        if self.checksum != 0:  # they are part of the UDP checksum too (RFC 768)
            udp_checksum_at = slice(self.payload_offset - 2, self.payload_offset)
            readdressed[udp_checksum_at] = _corrected(self.packet[udp_checksum_at], difference)
        return bytes(readdressed)


def parse(packet: bytes) -> UdpPacket | None:
    """View an IPv4/UDP packet; None for another protocol, a fragment, or lengths that are cut or lie."""
    located = _locate(packet)
    if located is None or located[0] != UDP:
        return None
    offset = located[1]
    if len(packet) - offset < UDP_HEADER_LENGTH or _word(packet, offset + 4) != len(packet) - offset:
        return None
    source, destination = _endpoints(packet, offset)
    return UdpPacket(packet, source, destination, offset + UDP_HEADER_LENGTH)


def parse_flow(packet: bytes) -> Flow | None:
    """Say whose flow a UDP or TCP packet is of; None for other protocols, fragments, lengths that lie."""
    located = _locate(packet)
    if located is None:
        return None
    protocol, offset = located
    if protocol == UDP and parse(packet) is None:
        return None
    if protocol == TCP and len(packet) - offset < _MINIMUM_TCP_HEADER_LENGTH:
        return None
    if protocol not in (TCP, UDP):
        return None
    return Flow(protocol, *_endpoints(packet, offset))


def source_of(packet: bytes) -> bytes | None:
    """Name the sender's address (4 bytes) of an IPv4 packet, whatever else about it lies."""
    if len(packet) < _MINIMUM_IP_HEADER_LENGTH or packet[0] >> 4 != 4:
        return None
    return packet[12:16]


def build_udp(source: Endpoint, destination: Endpoint, payload: bytes, *, checksum: bool = True) -> bytes:
    """Make a whole IPv4/UDP packet, with `checksum=False` one that carries none (0)."""
    if len(payload) > MAXIMUM_UDP_PAYLOAD_LENGTH:
        raise ValueError(f"payload of {len(payload)} bytes is longer than {MAXIMUM_UDP_PAYLOAD_LENGTH}")
    length = UDP_HEADER_LENGTH + len(payload)
    datagram = struct.pack("!HHHH", source.port, destination.port, length, 0) + payload
    if checksum:
        value = udp_checksum(source.address, destination.address, datagram)
        datagram = datagram[:6] + value.to_bytes(2, "big") + payload
    header = struct.pack(
        "!BBHIBBH", 0x45, 0, _MINIMUM_IP_HEADER_LENGTH + length, 0, _TIME_TO_LIVE_HOPS, UDP, 0
    )
    header += source.address + destination.address
    header_checksum = _checksum_of(_word_sum(header)).to_bytes(2, "big")
    return header[:10] + header_checksum + header[12:] + datagram


def udp_checksum(source_address: bytes, destination_address: bytes, datagram: bytes) -> int:
    """Compute a UDP datagram's checksum from scratch, whatever its checksum field holds; it is never 0."""
    pseudo_header = source_address + destination_address + struct.pack("!HH", UDP, len(datagram))
    return _checksum_of(_word_sum(pseudo_header + datagram[:6] + datagram[8:]))


def is_checksum_valid(packet: bytes) -> bool:
    """Say whether a receiver accepts this IPv4/UDP packet: IP checksum right, UDP checksum right or 0."""
    udp = parse(packet)
    if udp is None or _word_sum(packet[: udp.payload_offset - UDP_HEADER_LENGTH]) % 0xFFFF != 0:
        return False
    datagram = packet[udp.payload_offset - UDP_HEADER_LENGTH :]
    return udp.checksum in (0, udp_checksum(udp.source.address, udp.destination.address, datagram))


def format_address(address: bytes) -> str:
    """Write 4 bytes as `192.0.2.2`."""
    return str(ipaddress.IPv4Address(address))


def _locate(packet: bytes) -> tuple[int, int] | None:
    """Find protocol number and offset of the transport header; None unless this is one whole IPv4 packet."""
    if len(packet) < _MINIMUM_IP_HEADER_LENGTH or packet[0] >> 4 != 4:
        return None
    header_length = (packet[0] & 0x0F) * 4
    if not _MINIMUM_IP_HEADER_LENGTH <= header_length <= len(packet) or _word(packet, 2) != len(packet):
        return None
    if _word(packet, 6) & _FRAGMENT_BITS:
        return None
    return packet[9], header_length


def _endpoints(packet: bytes, offset: int) -> tuple[Endpoint, Endpoint]:
    source_port, destination_port = struct.unpack_from("!HH", packet, offset)
    return Endpoint(packet[12:16], source_port), Endpoint(packet[16:20], destination_port)


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")


def _word_sum(data: bytes) -> int:
    """Sum the 16-bit words, the last one padded with a zero byte, modulo 0xFFFF."""
    return (int.from_bytes(data, "big") << 8 * (len(data) % 2)) % 0xFFFF


def _corrected(checksum: bytes, difference: int) -> bytes:
    """A checksum after its words' sum has changed by `difference` (RFC 1624, equation 3)."""
    return _checksum_of(0xFFFF - int.from_bytes(checksum, "big") + difference).to_bytes(2, "big")


def _checksum_of(word_sum: int) -> int:
    return 0xFFFF - word_sum % 0xFFFF
