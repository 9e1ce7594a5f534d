"""The worker's side of the tracker: the outbox on the disk, the talk, and the socket around them.

Rule 1: a message is in the outbox before it is sent, and leaves it when its answer was handed out. Rule 2:
nothing here waits: the caller polls `socket` and calls `tick` at `next_deadline`. Rule 3: checkpoints are for
the keeper, no caller sees one.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Self

import zmq

from tracker.clock import read_clock
from tracker.conversation import Answer, Conversation, OutboxOutdated, inherited
from tracker.dialling import Connection, Credentials
from tracker.instant import Instant
from tracker.keeper import Keeper
from tracker.messages import (
    CheckpointMade,
    ClaimPort,
    Durable,
    GetStatus,
    NoCheckpoint,
    NotAllowed,
    Reply,
    ReplyBody,
    Request,
    Status,
    Volatile,
    decode_body,
    decode_reply,
    encode_body,
    encode_request,
)
from tracker.outbox import LIMIT, Outbox, OutboxFull, OutboxLocked, OutboxUnreadable

__all__ = [
    "Answer",
    "Credentials",
    "Keeper",
    "Line",
    "OutboxFull",
    "OutboxLocked",
    "OutboxOutdated",
    "OutboxUnreadable",
    "TrackerClient",
    "ask",
    "ask_status",
]

_RETRY_NS: Final = 100_000_000
"""How soon to try again what the socket would not take."""
_HANDSHAKE_POLL_MS: Final = 200


class TrackerClient:
    """One worker's connection. Use `open`; not for several threads."""

    def __init__(
        self,
        endpoint: str,
        outbox: Outbox,
        conversation: Conversation,
        keeper: Keeper | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._outbox = outbox
        self._conversation = conversation
        self._keeper = keeper
        self._answered: list[int] = []
        self._blocked_until_ns = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connection = Connection(self._context, endpoint, credentials)
        self.socket = self._connection.socket

    @classmethod
    def open(
        cls,
        endpoint: str,
        *,
        worker: str,
        outbox: Path,
        now: Instant,
        limit: int = LIMIT,
        keeper: Keeper | None = None,
        credentials: Credentials | None = None,
    ) -> Self:
        """Connects, now or when the tracker is there. OutboxLocked, OutboxUnreadable.

        `keeper`: gets every checkpoint that the tracker sends. `credentials`: for TCP.
        """
        box = Outbox.open(outbox, worker=worker, now_ns=now.wall_ns, limit=limit)
        left = [
            (sequence, inherited(decode_body(message), wall_ns))
            for sequence, wall_ns, message in box.messages()
        ]
        conversation = Conversation(worker, box.incarnation, box.next_sequence, left)
        return cls(endpoint, box, conversation, keeper, credentials)

    @property
    def pending(self) -> int:
        """How many messages wait for their answer."""
        return len(self._conversation)

    @property
    def denied(self) -> str | None:
        """Why the tracker takes nothing of us; None: it does, or has not been heard yet."""
        return self._connection.refused or self._conversation.denied

    @property
    def room_for_claims(self) -> bool:
        """Whether a ClaimPort may be submitted; reports have a reserve."""
        return self._outbox.room_for_claims

    @property
    def is_drained(self) -> bool:
        """Whether the outbox is far from full."""
        return self._outbox.is_drained

    def submit(self, message: Durable, now: Instant) -> int:
        """Its sequence; on the disk when it returns. OutboxFull: nothing was kept."""
        return self.submit_all([message], now)[0]

    def submit_all(self, messages: Iterable[Durable], now: Instant) -> list[int]:
        """The same for several, with one fsync: all of them or none."""
        batch = list(messages)
        if not batch:
            return []
        if not self.room_for_claims and any(isinstance(message, ClaimPort) for message in batch):
            raise OutboxFull(f"{self._outbox.path}: what room is left is for reports")
        self._outbox.put([encode_body(message) for message in batch], now.wall_ns)
        sequences = [self._conversation.submit(message, now) for message in batch]
        self._send_due(now)
        return sequences

    def send(self, message: Volatile, now: Instant) -> bool:
        """Once, if the tracker is connected; whether it was."""
        return self._send_frame(self._conversation.volatile(message, now))

    def receive(self, now: Instant) -> list[Answer]:
        """Everything that has come. ProtocolError: whoever answers is no tracker; OutboxOutdated."""
        answers: list[Answer] = []
        while (frame := self._next_frame()) is not None:
            answer = self._conversation.receive(frame, now)
            match answer:
                case None:
                    pass
                case Answer(reply=CheckpointMade() as made):
                    self._keep(made, now)
                case Answer(reply=NoCheckpoint()):
                    pass  # to a question about one that is gone: the next checkpoint asks it again
                case _:
                    answers.append(answer)
        self._answered.extend(answer.sequence for answer in answers if answer.sequence)
        self.tick(now)
        return answers

    def tick(self, now: Instant) -> None:
        """Sends what is due, and clears the outbox of what was answered."""
        self._connection.tick(now.monotonic_ns)
        if self._conversation.renumbered:
            self._outbox.rename(self._conversation.incarnation)
            self._conversation.renumbered = False
        if self._answered:
            self._clear()
        self._send_due(now)

    def next_deadline(self) -> int | None:
        """When `tick` has something to do, by the monotonic clock."""
        due_ns = self._conversation.next_deadline()
        return None if due_ns is None else max(due_ns, self._blocked_until_ns)

    def close(self) -> None:
        """Ends the connection; what is unanswered stays in the outbox."""
        if self._answered:
            self._clear()
        self._connection.close()
        self._context.term()
        self._outbox.close()

    def _keep(self, made: CheckpointMade, now: Instant) -> None:
        question = None if self._keeper is None else self._keeper.receive(made)
        if question is not None:
            self.send(question, now)

    def _clear(self) -> None:
        try:
            self._outbox.remove(self._answered)
        except OutboxFull:
            return  # the disk is full even for that: they stay, to be cleared, or answered again
        self._answered.clear()

    def _send_due(self, now: Instant) -> None:
        if now.monotonic_ns < self._blocked_until_ns:
            return
        for sequence, frame in self._conversation.due(now):
            if not self._send_frame(frame):
                self._blocked_until_ns = now.monotonic_ns + _RETRY_NS
                return
            self._conversation.sent(sequence, now)

    def _send_frame(self, frame: bytes) -> bool:
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _next_frame(self) -> bytes | None:
        try:
            parts = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return b"".join(parts)  # a tracker sends one part; anything else will not decode


def ask_status(endpoint: str, timeout_s: float, credentials: Credentials | None = None) -> Status | None:
    """How the tracker at `endpoint` stands; None if none answers in time."""
    body = ask(endpoint, "reader", GetStatus(), timeout_s, credentials)
    return body if isinstance(body, Status) else None


def ask(
    endpoint: str, name: str, question: Volatile, timeout_s: float, credentials: Credentials | None = None
) -> ReplyBody | None:
    """What the tracker at `endpoint` answers to somebody called `name`; None if none answers in time."""
    with Line.open(endpoint, name, credentials) as line:
        line.say(question)
        answer = line.hear(timeout_s)
        return None if answer is None else answer.body


class Line:
    """A connection to the tracker for somebody who has no outbox: a reader, or an operator."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._number = 0

    @classmethod
    @contextmanager
    def open(cls, endpoint: str, name: str, credentials: Credentials | None = None) -> Iterator[Self]:
        """Connects, now or when the tracker is there. With credentials, the name is that of the key."""
        known_as = name if credentials is None else credentials.own.name
        with zmq.Context() as context:
            connection = Connection(context, endpoint, credentials, immediate=False)
            with closing(connection):
                yield cls(connection, known_as)

    def say(self, body: Volatile, number: int = 0) -> None:
        """Sends it; where no tracker is, it waits for one as long as the line is open.

        `number` comes back as the `incarnation` of what answers it.
        """
        self._number = number
        frame = encode_request(Request(self._name, number, 0, 0, 0, read_clock().wall_ns, body))
        self._connection.socket.send(frame)

    def hear(self, timeout_s: float) -> Reply | None:
        """The next word of the tracker; None: there is none in time. ProtocolError: it is no tracker.

        NotAllowed, too, where the tracker does not let us in.
        """
        end_ns = read_clock().monotonic_ns + round(timeout_s * 1e9)
        while True:
            left_ms = max(0, (end_ns - read_clock().monotonic_ns) // 1_000_000)
            if self._connection.socket.poll(min(left_ms, _HANDSHAKE_POLL_MS)):
                return decode_reply(self._connection.socket.recv())
            self._connection.tick(read_clock().monotonic_ns)
            if self._connection.refused is not None:
                return Reply(self._number, 0, NotAllowed(self._connection.refused))
            if not left_ms:
                return None
