"""How a client calls its tracker: the DEALER socket, its keys, and what becomes of the handshake.

Rule 1: by TCP nothing is said to a tracker that has not proved to have the secret half of the key we know
(CURVE). Rule 2: libzmq never calls again where it was turned away; so we do, because a key can be authorised
meanwhile.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from tracker.keyring import KeyRole, SecretKey, read_secret_key
from tracker.messages import REPLY_LIMIT

Socket = zmq.Socket[bytes]
HEARTBEAT_MS: Final = 2_000
"""Between two pings of an idle TCP connection, either way."""
DEAD_MS: Final = 6_000
"""A connection that was silent for so long, pings included, is none any more."""
HANDSHAKE_MS: Final = 5_000
_REDIAL_NS: Final = 2_000_000_000
_FAILED: Final = 3
"""So many handshakes in a row that came to nothing are no chance: not a tracker that just went away."""
_EVENTS: Final = (
    zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Our key, and the tracker's public one."""

    own: SecretKey
    tracker: str

    @classmethod
    def read(cls, path: Path, tracker: str, role: KeyRole | None = None) -> Self:
        """KeyUnusable: there is no secret key there, or not one of this role."""
        return cls(read_secret_key(path, role), tracker)


class Connection:
    """A DEALER socket to one endpoint; with credentials also how its handshakes end."""

    def __init__(
        self,
        context: zmq.Context[Socket],
        endpoint: str,
        credentials: Credentials | None = None,
        *,
        immediate: bool = True,
    ) -> None:
        self.refused: str | None = None
        """Why the tracker lets us not in; None: it does, or was not reached yet."""
        self.socket = context.socket(zmq.DEALER)
        self._endpoint = endpoint
        self._monitor: Socket | None = None
        self._redial_ns: int | None = None
        self.socket.set(zmq.LINGER, 0)
        # Nothing is queued while the tracker is away: a claim must not be granted a minute after it was made.
        self.socket.set(zmq.IMMEDIATE, int(immediate))
        self.socket.set(zmq.RECONNECT_IVL, 50)
        self.socket.set(zmq.RECONNECT_IVL_MAX, 500)
        self.socket.set(zmq.MAXMSGSIZE, REPLY_LIMIT)
        if credentials is not None:
            self._secure(credentials)
            self._monitor = self.socket.get_monitor_socket(_EVENTS)
        self.socket.connect(endpoint)

    def tick(self, now_ns: int) -> None:
        """Hears how handshakes ended, and calls again where we were turned away."""
        while self._monitor is not None and self._monitor.poll(0):
            match recv_monitor_message(self._monitor)["event"]:
                case zmq.Event.HANDSHAKE_SUCCEEDED:
                    self.refused, self._redial_ns = None, None
                case zmq.Event.HANDSHAKE_FAILED_AUTH:
                    self.refused = "it does not know our key, or has too many connections"
                    self._redial_ns = now_ns + _REDIAL_NS
                case _:
                    self.refused = (
                        "no handshake comes about: is it a tracker, and tracker_key its public key?"
                    )
                    self._redial_ns = now_ns + _REDIAL_NS
        if self._redial_ns is not None and now_ns >= self._redial_ns:
            self._redial_ns = None
            self.socket.disconnect(self._endpoint)
            self.socket.connect(self._endpoint)

    def close(self) -> None:
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(linger=0)
        self.socket.close(linger=0)

    def _secure(self, credentials: Credentials) -> None:
        self.socket.set(zmq.CURVE_PUBLICKEY, credentials.own.public.encode())
        self.socket.set(zmq.CURVE_SECRETKEY, credentials.own.secret.encode())
        self.socket.set(zmq.CURVE_SERVERKEY, credentials.tracker.encode())
        keep_alive(self.socket)


def keep_alive(socket: Socket) -> None:
    """Pings on idle connections; the dead, and those that never finish their handshake, are dropped."""
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, DEAD_MS)
    socket.set(zmq.HEARTBEAT_TTL, DEAD_MS)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
