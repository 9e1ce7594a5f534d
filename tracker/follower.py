"""A reader's connection to the tracker's feed: records as they come, each position once, in order.

Rule 1: whatever becomes of tracker, connection or reader, `receive` goes on where it was. Rule 2: what was
handed out is taken when `receive` is called again: a slow reader is sent no more than it has room for.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Self

import zmq

from tracker.client import Credentials, Line
from tracker.clock import read_clock
from tracker.dialling import Connection
from tracker.feed import Feed, FeedOver, Following, GetState, Piece, StatePart
from tracker.image import Fold
from tracker.messages import NotAllowed, Request, decode_reply, encode_request


class Follower:
    """One reader's place in the log of the tracker at the other end."""

    def __init__(self, connection: Connection, name: str, following: Following) -> None:
        self._connection = connection
        self._socket = connection.socket
        self._name = name
        self._following = following

    @classmethod
    @contextmanager
    def open(
        cls,
        endpoint: str,
        name: str,
        position: int,
        leaf: bytes | None = None,
        credentials: Credentials | None = None,
    ) -> Iterator[Self]:
        """From `position` on; `leaf`: of the record before it, so that another log is not taken for this one.

        Connects now, or when the tracker is there; with credentials, the name is that of the key.
        """
        known_as = name if credentials is None else credentials.own.name
        with zmq.Context() as context:
            connection = Connection(context, endpoint, credentials)
            with closing(connection):
                yield cls(connection, known_as, Following(position, leaf))

    @property
    def position(self) -> int:
        """Of the next record."""
        return self._following.position

    @property
    def size(self) -> int | None:
        """Of the log, when the tracker last said something; None: it never has."""
        return self._following.size

    def receive(self, timeout_s: float) -> list[Piece]:
        """What has come, or comes in time.

        FeedOver: nothing more ever will; ProtocolError: it is no tracker.
        """
        deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)
        while True:
            self._ask()
            found = self._arrived()
            left_ns = deadline_ns - time.monotonic_ns()
            if found or left_ns <= 0:
                return found
            wait_ns = min(left_ns, max(0, self._following.next_deadline() - time.monotonic_ns()))
            self._socket.poll(wait_ns // 1_000_000 + 1)

    def _ask(self) -> None:
        now = read_clock()
        self._connection.tick(now.monotonic_ns)
        if self._connection.refused is not None:
            raise FeedOver(self._connection.refused)
        asked = self._following.due(now)
        if asked is not None:
            frame = encode_request(Request(self._name, 0, 0, 0, 0, now.wall_ns, asked))
            with suppress(zmq.Again):  # no tracker is there: it is asked again
                self._socket.send(frame, zmq.NOBLOCK)

    def _arrived(self) -> list[Piece]:
        found: list[Piece] = []
        while not found:
            try:
                body = decode_reply(self._socket.recv(zmq.NOBLOCK)).body
            except zmq.Again:
                break
            if isinstance(body, NotAllowed):
                raise FeedOver(body.reason)
            if isinstance(body, Feed):
                found = self._following.receive(body, read_clock())
        return found


def current_state(
    endpoint: str, name: str, timeout_s: float, credentials: Credentials | None = None
) -> tuple[int, Fold] | None:
    """The tracker's state, and after how many records: a Follower goes on from there. None: no answer."""
    parts: list[StatePart] = []
    with Line.open(endpoint, name, credentials) as line:
        line.say(GetState())
        while (answer := line.hear(timeout_s)) is not None:
            if isinstance(answer.body, NotAllowed):
                raise FeedOver(answer.body.reason)
            if isinstance(answer.body, StatePart):
                parts.append(answer.body)
                if len(parts) == answer.body.parts:
                    return answer.body.size, Fold(b"".join(part.data for part in parts))
    return None
