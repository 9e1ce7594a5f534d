"""The porter at the tracker's doors: who may come in at all (ZAP), and how many are in.

Rule 1: by TCP comes in who proves to have an authorised key (CURVE); nothing else is even read. Rule 2: the
porter is there before the first door is opened, and no door opens without him (ZAP_ENFORCE_DOMAIN). Rule 3:
he sits in the loop like everybody else: a handshake waits for him, he waits for nobody. Rule 4: whom he turns
away is counted, by few names.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from tracker.keyring import Keyring

Socket = zmq.Socket[bytes]
_ZAP: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_BURST: Final = 64
"""Handshakes in one round."""
_EVENTS: Final = (
    zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
)
REMOTE: Final = "tcp"
"""The name of the doors that take keys; the others are called after their role."""


@dataclass(slots=True)
class _Watched:
    """A door as the porter sees it: `inside`, the descriptors of its connections."""

    name: str
    monitor: Socket
    inside: set[int] = field(default_factory=set)


class Porter:
    """`connections`: so many one door may have. `counters` gets what he turns away."""

    def __init__(
        self,
        context: zmq.Context[Socket],
        keyring: Keyring | None,
        connections: int,
        counters: Counter[str],
    ) -> None:
        self._context = context
        self._keyring = keyring
        self._connections = connections
        self._counters = counters
        self._doors: dict[bytes, _Watched] = {}
        self._zap: Socket = context.socket(zmq.ROUTER)
        self._zap.set(zmq.LINGER, 0)
        self._zap.bind(_ZAP)

    @property
    def sockets(self) -> list[Socket]:
        """Poll these, and call `work`."""
        return [self._zap, *(door.monitor for door in self._doors.values())]

    def watch(self, socket: Socket, name: str) -> None:
        """Take this socket, which is not bound yet, under his eyes."""
        domain = f"{name} {len(self._doors)}".encode()
        address = f"inproc://porter-{len(self._doors)}"
        socket.set(zmq.ZAP_DOMAIN, domain)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.monitor(address, _EVENTS)
        monitor = self._context.socket(zmq.PAIR)
        monitor.set(zmq.LINGER, 0)
        monitor.set(zmq.RCVHWM, 0)  # full, it would make libzmq's own thread wait, and so everybody
        monitor.connect(address)
        self._doors[domain] = _Watched(name, monitor)

    def work(self) -> None:
        """Whatever has come: connections first, so that a handshake finds them counted."""
        for door in self._doors.values():
            self._count(door)
        for _ in range(_BURST):
            try:
                request = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            identity, empty, _version, number, domain, *_ = request
            user = self._admitted(self._doors[domain], request[7], request[8:])
            status = (b"400", b"not here", b"") if user is None else (b"200", b"OK", user.encode())
            self._zap.send_multipart([identity, empty, _VERSION, number, *status, b""])

    def close(self) -> None:
        """After the doors."""
        for door in self._doors.values():
            door.monitor.close()
        self._zap.close()

    def _count(self, door: _Watched) -> None:
        while door.monitor.poll(0):
            happened = recv_monitor_message(door.monitor)
            match happened["event"]:
                case zmq.Event.ACCEPTED:
                    door.inside.add(happened["value"])
                    self._counters[f"connections: {door.name}"] += 1
                case zmq.Event.DISCONNECTED:
                    door.inside.discard(happened["value"])
                case _:
                    self._counters["refused: handshake"] += 1

    def _admitted(self, door: _Watched, mechanism: bytes, credentials: list[bytes]) -> str | None:
        """The public key of whoever may come in, empty on this machine; None: he may not."""
        if len(door.inside) > self._connections:
            self._counters["refused: connections"] += 1
            return None
        if door.name != REMOTE:
            return ""
        public = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
        if self._keyring is not None and public in self._keyring.authorised.keys:
            return public
        self._counters["refused: unknown key"] += 1
        return None
