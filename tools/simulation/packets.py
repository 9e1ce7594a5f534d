"""Packets, connections and queues of a simulated kernel.

Rule 1: a packet is UDP; its octets are made only when somebody reads them.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address
from typing import Final, Protocol

from rewriter.cuseeme import Header, OpenContinue, encode_open_continue
from rewriter.packet import Endpoint, build_udp
from tools.simulation.world import Process

MEDIA: Final = b"\x00" * 40
Tuple = tuple[str, int, str, int]
"""Source and destination with their ports."""


@dataclass(eq=False, slots=True)
class Packet:
    """UDP on its way; `talk`: the message of an OpenContinue, None for media."""

    source: str
    sport: int
    destination: str
    dport: int
    talk: int | None
    user_name: str = ""
    mark: int = 0
    entry: "Entry | None" = None
    reply: bool = False
    resume: Callable[[], object] | None = None

    @property
    def tuple(self) -> Tuple:
        return self.source, self.sport, self.destination, self.dport

    def bytes(self) -> bytes:
        """The whole packet, as a queue hands it over."""
        return _packet_bytes(self.source, self.sport, self.destination, self.dport, self.talk, self.user_name)


@cache
def _packet_bytes(  # noqa: PLR0917 - what a packet is made of
    source: str, sport: int, destination: str, dport: int, talk: int | None, user_name: str
) -> bytes:
    sender = Endpoint(IPv4Address(source).packed, sport)
    payload = MEDIA
    if talk is not None:
        header = Header(port=sport, address=sender.address, message=talk)
        payload = encode_open_continue(header, OpenContinue(user_name=user_name))
    return build_udp(sender, Endpoint(IPv4Address(destination).packed, dport), payload)


@dataclass(eq=False, slots=True)
class Entry:
    """A connection; `original` and `reply` are (source, port, destination, port) as seen from each opener.

    `late`: a packet made it that had passed the last fence before.
    """

    original: Tuple
    reply: Tuple
    mark: int = 0
    replied: bool = False
    confirmed: bool = False
    late: bool = False
    expires_ns: int = 0

    def line(self) -> str:
        """As `conntrack -L` prints it."""
        (s, sp, d, dp), (rs, rsp, rd, rdp) = self.original, self.reply
        unreplied = "" if self.replied else "[UNREPLIED] "
        return (
            f"udp      17 29 src={s} dst={d} sport={sp} dport={dp} {unreplied}"
            f"src={rs} dst={rd} sport={rsp} dport={rdp} mark={self.mark} use=1"
        )


@dataclass(eq=False)
class PacketQueue:
    """An NFQUEUE number with a listener; `passes_when_full`: NFQA_CFG_F_FAIL_OPEN."""

    process: Process
    passes_when_full: bool
    packets: deque[Packet] = field(default_factory=deque)

    def readable(self) -> bool:
        return bool(self.packets)


class Witness(Protocol):
    """Who is told what really happened to packets."""

    def let_in(self, gateway: str, public: str, service: str, host: str) -> None: ...
    def let_out(self, gateway: str, public: str, service: str, host: str) -> None: ...
    def refreshed(self, gateway: str, service: str, host: str) -> None: ...
    def vanished(self, gateway: str, service: str, host: str) -> None: ...
    def overflowed(self, gateway: str) -> None: ...
    def queued(self, gateway: str, process: Process, *, talk: bool) -> None: ...
