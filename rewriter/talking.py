"""Whose call a service packet is of, and what its payload has to say on the other side.

Rule: packets are seen after destination NAT and before source NAT, so the holder by its own address.
"""

from ipaddress import IPv4Address

from rewriter import cuseeme
from rewriter.cuseeme import Direction
from rewriter.packet import Endpoint, UdpPacket
from rewriter.vocabulary import Element, Ports


def way_of(element: Element, ports: tuple[Ports, ...], udp: UdpPacket) -> Direction | None:
    """Which way a packet of this binding goes, whose service has these ports; None: it is not of its.

    A host can hold several services: the one whose port is at either end (a caller's may be any).
    """
    source, destination = IPv4Address(udp.source.address), IPv4Address(udp.destination.address)
    if element.holder not in (source, destination):
        return None
    if not any(
        span.protocol == "udp" and span.first <= port <= span.last
        for span in ports
        for port in (udp.source.port, udp.destination.port)
    ):
        return None
    other = destination if element.holder == source else source
    if element.peer not in (None, other):
        return None
    return Direction.OUT if element.holder == source else Direction.IN


def translated(udp: UdpPacket, direction: Direction, element: Element, *, hairpinned: bool) -> bytes:
    """A packet's payload on the other side; ports are kept, so the public port is the private one.

    Hairpinned, it comes in before it goes out: the public address it names is the receiver's, and then its
    own becomes that.
    """
    payload = udp.payload
    for way, ours in ((Direction.IN, udp.destination), (Direction.OUT, udp.source)):
        if hairpinned or way is direction:
            payload = cuseeme.translate(payload, way, Endpoint(element.public.packed, ours.port), ours)
    return payload
