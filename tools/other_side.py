"""What a captured packet looks like on the gateway's other side: addresses, payload and checksums changed.

Rule 1: an own end of the flow becomes its other face, whichever of them was captured: a view from inside
  becomes the view from outside, and the other way round. Ports stay, as the gateway keeps them.
Rule 2: what can't be translated whole is not touched at all; an Outcome says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from rewriter import packet
from rewriter.cuseeme import Direction, translate
from rewriter.packet import UDP, Endpoint, UdpPacket
from tools.capture_file import Frame

PRIVATE: Final = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918
_ETHERTYPE_IPV4: Final = b"\x08\x00"
_VLAN_TAGS: Final = (b"\x81\x00", b"\x88\xa8")
_AF_INET: Final = (b"\x02\0\0\0", b"\0\0\0\x02")
_SHORTEST_IP_HEADER: Final = 20
_FRAGMENT: Final = 0x3FFF
_ONE_HOST: Final = 32


class Outcome(Enum):
    """What became of a packet; all but the first leave it as it was."""

    TRANSLATED = "translated"
    OTHER_FLOW = "of no flow that is to be translated"
    UNKNOWN_HOST = "to or from the public address, and which host it was is not said"
    NOT_UDP = "not UDP"
    FRAGMENT = "a fragment"
    CUT = "cut short by the capture's snap length"
    LENGTHS_LIE = "with lengths that do not agree"
    NOT_IPV4 = "not IPv4"
    UNKNOWN_LINK = "of an unknown link type"


@dataclass(frozen=True, slots=True)
class Host:
    """Whom the LAN side is: a host or a network, with `port` only its flows from and to that port."""

    network: IPv4Network
    port: int | None = None

    def is_end(self, end: Endpoint) -> bool:
        return IPv4Address(end.address) in self.network and self.port in (None, end.port)

    def may_be(self, port: int) -> bool:
        """Whether the public address can stand for this host, and no other of a network."""
        return self.network.prefixlen == _ONE_HOST and self.port in (None, port)


@dataclass(frozen=True, slots=True)
class Gateway:
    """The two faces; `direction` None translates both ways. `ports`: either end has one of these."""

    public: IPv4Address
    ports: frozenset[int]
    hosts: Sequence[Host] = field(default=tuple(Host(network) for network in PRIVATE))
    direction: Direction | None = None

    def cross(self, whole: bytes) -> tuple[Outcome, bytes]:
        """A whole IPv4 packet as it is on the other side."""
        udp = packet.parse(whole)
        if udp is None:
            return Outcome.LENGTHS_LIE, whole
        flow = self._own_end(udp)
        if flow is None or self.direction not in (None, flow[0]):
            return Outcome.OTHER_FLOW, whole
        direction, seen = flow
        face = self._other_face(seen)
        if face is None:
            return Outcome.UNKNOWN_HOST, whole
        # Each direction names the face that it finds and the one that it writes: here that is their order.
        if direction is Direction.OUT:
            payload = translate(udp.payload, direction, public=face, private=seen)
            addresses = face.address, udp.destination.address
        else:
            payload = translate(udp.payload, direction, public=seen, private=face)
            addresses = udp.source.address, face.address
        translated = packet.parse(udp.with_payload(payload))
        if translated is None:
            raise ValueError("a packet that could be read can't be read with another payload")
        return Outcome.TRANSLATED, translated.with_addresses(*addresses)

    def _own_end(self, udp: UdpPacket) -> tuple[Direction, Endpoint] | None:
        """The end that is the gateway's own, inside or outside; None if none is, or both are."""
        if self.ports.isdisjoint((udp.source.port, udp.destination.port)):
            return None
        sends, receives = self._is_own(udp.source), self._is_own(udp.destination)
        if sends == receives:
            return None
        return (Direction.OUT, udp.source) if sends else (Direction.IN, udp.destination)

    def _is_own(self, end: Endpoint) -> bool:
        return end.address == self.public.packed or any(host.is_end(end) for host in self.hosts)

    def _other_face(self, seen: Endpoint) -> Endpoint | None:
        if seen.address != self.public.packed:
            return Endpoint(self.public.packed, seen.port)
        found = {host.network.network_address for host in self.hosts if host.may_be(seen.port)}
        return Endpoint(found.pop().packed, seen.port) if len(found) == 1 else None


def other_side(frame: Frame, gateway: Gateway) -> tuple[Outcome, bytes]:
    """A captured packet as it is on the other side, link layer and padding unchanged."""
    start, whole = ipv4_of(frame)
    if isinstance(whole, Outcome):
        return whole, frame.octets
    outcome, crossed = gateway.cross(whole)
    return outcome, frame.octets[:start] + crossed + frame.octets[start + len(crossed) :]


def ipv4_of(frame: Frame) -> tuple[int, bytes | Outcome]:
    """Where a whole IPv4/UDP packet begins in a frame, and the packet; or why there is none."""
    start = _after_link_layer(frame.link_type, frame.octets)
    if isinstance(start, Outcome):
        return 0, start
    found = frame.octets[start:]
    length = int.from_bytes(found[2:4], "big")
    if len(found) < max(_SHORTEST_IP_HEADER, length):
        outcome = Outcome.CUT if frame.length > len(frame.octets) else Outcome.LENGTHS_LIE
    elif found[0] >> 4 != 4:
        outcome = Outcome.NOT_IPV4
    elif found[9] != UDP:
        outcome = Outcome.NOT_UDP
    elif int.from_bytes(found[6:8], "big") & _FRAGMENT:
        outcome = Outcome.FRAGMENT
    else:
        return start, found[:length]
    return start, outcome


def _after_link_layer(link_type: int, octets: bytes) -> int | Outcome:
    """The offset of an IPv4 header; the numbers are those of tcpdump.org/linktypes.html."""
    match link_type:
        case 1:  # Ethernet
            at = 12
            while octets[at : at + 2] in _VLAN_TAGS:
                at += 4
        case 113:  # Linux cooked
            at = 14
        case 276:  # Linux cooked, second version
            return 20 if octets[:2] == _ETHERTYPE_IPV4 else Outcome.NOT_IPV4
        case 0 | 108:  # BSD loopback
            return 4 if octets[:4] in _AF_INET else Outcome.NOT_IPV4
        case 12 | 14 | 101 | 228:  # IP itself
            return 0
        case _:
            return Outcome.UNKNOWN_LINK
    return at + 2 if octets[at : at + 2] == _ETHERTYPE_IPV4 else Outcome.NOT_IPV4
