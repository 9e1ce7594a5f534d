"""Who uses the gateways: workstations that call, peers that answer and go on sending, callers from outside.

Rule 1: they know nothing of porthold; what they do follows from what reaches them. Rule 2: like real clients
they ask again every two seconds until somebody answers, and hang up two times within a millisecond.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from rewriter.cuseeme import Message
from tools.simulation.netfilter import Kernel
from tools.simulation.packets import Packet
from tools.simulation.world import MILLISECOND_NS, SECOND_NS, World

CUSEEME: Final = 7648
CHAT: Final = 9000
OPEN_EVERY_NS: Final = 2 * SECOND_NS
MEDIA_EVERY_NS: Final = 450 * MILLISECOND_NS
WAN_NS: Final = 15 * MILLISECOND_NS
PEER_EVERY_NS: Final = 500 * MILLISECOND_NS
PEERS: Final = ("198.51.100.7", "198.51.100.8")
CALLERS: Final = ("198.51.100.20", "198.51.100.21")


@dataclass(eq=False, slots=True)
class Call:
    """A workstation's attempt to talk to a peer; `heard`: packets of the peer that reached it.

    `answered_ns`: when the last one did, to what had been sent on the way that packets take now.
    """

    host: str
    peer: str
    port: int
    user_name: str
    over: bool = False
    heard: int = 0
    answered_ns: int = -SECOND_NS
    sent_ns: int = 0


@dataclass(eq=False)
class Lan:
    """One gateway's two sides: the workstations behind it and those who talk to them.

    Of two kernels with one address `way_out` is the one that workstations send to, `way_in` the one to which
    the Internet sends what is for that address; but who rings does so at each.
    """

    world: World
    kernels: Sequence[Kernel]
    number: int
    calls: dict[tuple[str, str, int], Call] = field(default_factory=dict)
    _sending_until_ns: dict[tuple[str, str, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.way_out = self.way_in = self.kernels[0]
        for kernel in self.kernels:
            kernel.to_lan = self._reached
            kernel.to_wan = self._left
        self._led_ns = -1
        self._resting = False
        self._chance = self.world.chance(f"people {self.number}")

    def lead(self, way_out: Kernel, way_in: Kernel) -> None:
        """From now on packets take these ways."""
        self.way_out, self.way_in, self._led_ns = way_out, way_in, self.world.now_ns
        for call in self.calls.values():
            call.answered_ns = -SECOND_NS

    def host(self, index: int) -> str:
        return f"192.168.{self.number}.{10 + index}"

    def rest(self) -> None:
        """Nobody calls any more, and nobody answers."""
        self._resting = True
        for call in self.calls.values():
            call.over = True
        self._sending_until_ns.clear()

    # --- workstations ------------------------------------------------------------------------------------

    def call(self, host: str, peer: str, port: int, for_ns: int, *, hang_up: bool, name: str = "") -> Call:
        """Call a peer for so long; at the end hang up, or just fall silent."""
        key = (host, peer, port)
        old = self.calls.get(key)
        if old is not None:
            old.over = True
        call = self.calls[key] = Call(host, peer, port, name)
        self._open(call)
        self.world.after(MEDIA_EVERY_NS // 3, partial(self._media, call))
        self.world.after(for_ns, partial(self._end, call, hang_up=hang_up))
        return call

    def _open(self, call: Call) -> None:
        if not call.over:
            self._send(call, Message.OPEN)
            self.world.after(
                OPEN_EVERY_NS + self._chance.randrange(10) * MILLISECOND_NS, partial(self._open, call)
            )

    def _media(self, call: Call) -> None:
        if not call.over:
            self._send(call, None)
            self.world.after(
                MEDIA_EVERY_NS + self._chance.randrange(10) * MILLISECOND_NS, partial(self._media, call)
            )

    def _end(self, call: Call, *, hang_up: bool) -> None:
        if call.over:
            return
        call.over = True
        call.answered_ns = -SECOND_NS
        if hang_up and call.port == CUSEEME:
            self._send(call, Message.CLOSE)
            self.world.after(MILLISECOND_NS, partial(self._send, call, Message.CLOSE))

    def _send(self, call: Call, talk: int | None) -> None:
        talk = talk if call.port == CUSEEME else None
        call.sent_ns = self.world.now_ns
        self.way_out.from_lan(Packet(call.host, call.port, call.peer, call.port, talk, call.user_name))

    def flood(self, host: str, peer: str, packets: int) -> None:
        """Many packets at once, each of which could be a claim."""
        for number in range(packets):
            self.way_out.from_lan(Packet(host, CUSEEME, peer, CUSEEME, Message.OPEN if number % 2 else None))

    def _reached(self, packet: Packet) -> None:
        """Something from outside has reached a workstation."""
        call = self.calls.get((packet.destination, packet.source, packet.dport))
        if call is not None:
            call.heard += 1
            spoken = not call.over and call.sent_ns > self._led_ns
            call.answered_ns = self.world.now_ns if spoken else -SECOND_NS
        elif packet.source in CALLERS:
            answer = Packet(packet.destination, packet.dport, packet.source, packet.sport, None)
            self.world.after(10 * MILLISECOND_NS, partial(self.way_out.from_lan, answer))

    # --- outside -----------------------------------------------------------------------------------------

    def ring(self, caller: str, sport: int, times: int) -> None:
        """A caller rings at the public address."""
        if self._resting:
            return
        public = self.way_in.public
        if public is not None:
            talk = Message.OPEN if times % 2 else None
            for kernel in self.kernels:
                kernel.from_wan(Packet(caller, sport, public, CUSEEME, talk))
        if times > 1:
            self.world.after(PEER_EVERY_NS, partial(self.ring, caller, sport, times - 1))

    def _left(self, packet: Packet) -> None:
        """Something has left to the outside; a peer answers, and goes on for a while."""
        if packet.destination not in PEERS:
            return
        key = (packet.destination, packet.source, packet.dport, packet.sport)
        sending = self._sending_until_ns.get(key, 0) > self.world.now_ns
        go_on_ns = 0 if packet.talk == Message.CLOSE else self._chance.randrange(1, 6) * SECOND_NS
        self._sending_until_ns[key] = max(self._sending_until_ns.get(key, 0), self.world.now_ns + go_on_ns)
        if not sending:
            self.world.after(WAN_NS, partial(self._answer, key))

    def _answer(self, key: tuple[str, str, int, int]) -> None:
        peer, public, port, public_port = key
        talk = Message.OPEN if self._chance.random() < 0.2 and port == CUSEEME else None
        self.way_in.from_wan(Packet(peer, port, public, public_port, talk))
        if self.world.now_ns < self._sending_until_ns.get(key, 0):
            self.world.after(PEER_EVERY_NS, partial(self._answer, key))
