"""Packets of the laboratory: as clients write them, sent on and on, and seen with the kernel's times.

Rule: what is seen is what a wire carried; nobody's word is taken for it.
"""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from rewriter.cuseeme import (
    ClientEntry,
    DestinationFamily,
    Header,
    Message,
    OpenContinue,
    encode_open_continue,
    encode_video,
)
from tools.lab import Lab

SERVICE_PORT: Final = 7648
SO_TIMESTAMPNS: Final = 35  # include/uapi/asm-generic/socket.h
SO_RCVBUFFORCE: Final = 33
PACKET_OUTGOING: Final = 4  # include/uapi/linux/if_packet.h


class Seen(NamedTuple):
    """A packet with the kernel's time of its arrival (wall, ns)."""

    at_ns: int
    packet: bytes


@contextlib.contextmanager
def capture(lab: Lab, place: str, interface: str = "eth0") -> Iterator[list[Seen]]:
    """The IPv4 packets that arrive at an interface in the block, with their times; complete after its end."""

    def listen() -> socket.socket:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        listener.bind((interface, 3))
        listener.setblocking(False)
        return listener

    seen: list[Seen] = []
    with lab.within(place, listen) as listener:
        yield seen
        while True:
            try:
                packet, ancillary, _, sender = listener.recvmsg(65535, 512)
            except BlockingIOError:
                return
            if sender[1] != 0x0800 or sender[2] == PACKET_OUTGOING:
                continue
            times = [
                data
                for level, kind, data in ancillary
                if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS)
            ]
            seconds, nanoseconds = struct.unpack("=qq", times[0])
            seen.append(Seen(seconds * 1_000_000_000 + nanoseconds, packet))


def udp_to(packets: Iterable[Seen], address: str, ports: Iterable[int] = (7648, 7649, 24032)) -> list[Seen]:
    """Those that are UDP to an address and one of these ports (first fragments and whole packets)."""
    wanted = set(ports)
    destination = IPv4Address(address).packed

    def fits(packet: bytes) -> bool:
        header = (packet[0] & 0x0F) * 4
        if packet[9] != socket.IPPROTO_UDP or packet[16:20] != destination or packet[6] & 0x1F or packet[7]:
            return False
        return int.from_bytes(packet[header + 2 : header + 4], "big") in wanted

    return [seen for seen in packets if fits(seen.packet)]


def refusals(packets: Iterable[Seen]) -> list[Seen]:
    """Those that are ICMP "communication administratively prohibited"."""
    return [
        seen
        for seen in packets
        if seen.packet[9] == socket.IPPROTO_ICMP and seen.packet[20:22] == b"\x03\x0d"
    ]


def open_continue(
    address: str,
    *,
    message: int = Message.OPEN,
    name: str = "",
    port: int = SERVICE_PORT,
    entries: tuple[str, ...] = (),
    client_count: int = 0,
    sequence: int = 0,
) -> bytes:
    """An OpenContinue as a client at `address` writes it."""
    header = Header(
        destination_family=DestinationFamily.EXAMINE,
        port=port,
        address=IPv4Address(address).packed,
        sequence=sequence,
        message=message,
    )
    listed = tuple(ClientEntry(IPv4Address(entry).packed, 7, will_receive=1) for entry in entries)
    body = OpenContinue(user_name=name, entries=listed, client_count=client_count, sequence=sequence)
    return encode_open_continue(header, body)


def video(address: str, data: bytes = bytes(100), *, to: str = "0.0.0.0", sequence: int = 0) -> bytes:
    """A video packet as a client at `address` writes it; `to`: its dest_addr."""
    header = Header(
        destination_address=IPv4Address(to).packed,
        port=SERVICE_PORT,
        address=IPv4Address(address).packed,
        sequence=sequence,
        message=Message.END_OF_FRAME,
    )
    return encode_video(header, data)


@contextlib.contextmanager
def stream(
    sender: socket.socket, payload: bytes, destination: tuple[str, int], per_s: float
) -> Iterator[None]:
    """A peer that goes on sending in the block, whoever listens."""
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(1 / per_s):
            sender.sendto(payload, destination)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def on_processor(number: int, action: Callable[[], None]) -> threading.Thread:
    """A thread, started, that does something on one processor."""

    def pinned() -> None:
        if number in os.sched_getaffinity(0):
            os.sched_setaffinity(threading.get_native_id(), {number})
        action()

    thread = threading.Thread(target=pinned)
    thread.start()
    return thread


def received(listener: socket.socket, wait_s: float = 0.5) -> list[tuple[bytes, tuple[str, int]]]:
    """All datagrams until nothing comes for `wait_s`; the socket's own patience is left as it was."""
    usual_s = listener.gettimeout()
    listener.settimeout(wait_s)
    found: list[tuple[bytes, tuple[str, int]]] = []
    with contextlib.suppress(TimeoutError):
        while True:
            found.append(listener.recvfrom(65535))
    listener.settimeout(usual_s)
    return found
