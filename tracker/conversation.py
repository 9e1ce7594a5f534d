"""The worker's half of the talk with the tracker, without socket, disk or clock.

Rule 1: a durable message is sent again, in order, until its answer is here: at least once. Rule 2: sequences
are 1, 2, 3…, never given twice, never again from 1 within an incarnation. Rule 3: `acknowledged` never covers
a message whose answer is still missing. Rule 4: bytes in, answers out; who sends says when it has sent.
Rule 5: "not allowed" is no answer: the message stays, because what happened has happened, and a key can be
mended.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from tracker.instant import Instant
from tracker.messages import (
    AGE_UNKNOWN_MS,
    Durable,
    NotAllowed,
    OutboxSuperseded,
    ReplyBody,
    Request,
    ResendFrom,
    Volatile,
    decode_reply,
    encode_request,
)

MILLISECOND_NS: Final = 1_000_000
RESEND_NS: Final = 1_000 * MILLISECOND_NS
"""How long an answer may take before everything unanswered is sent again."""
REWIND_PAUSE_NS: Final = 200 * MILLISECOND_NS
"""A tracker that misses one message says so for each one after it: we hear it once."""
WINDOW: Final = 128
"""How many messages may be on their way."""


class OutboxOutdated(Exception):
    """The tracker has heard a newer outbox under this worker's name; two machines, one name?"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the tracker said to the message `sequence`; 0 and None for heartbeats and orders.

    `inherited`: the message is from a process before this one.
    """

    sequence: int
    request: Durable | None
    reply: ReplyBody
    inherited: bool


@dataclass(slots=True)
class Pending:
    """A message without an answer; `sent_ns` (monotonic) None: not on its way."""

    message: Durable
    submitted: Instant
    inherited: bool = False
    sent_ns: int | None = None


class Conversation:
    """State of the talk: what is unanswered, what is on its way."""

    def __init__(
        self, worker: str, incarnation: int, next_sequence: int, pending: Iterable[tuple[int, Pending]] = ()
    ) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.next_sequence = next_sequence
        self.renumbered = False
        self.denied: str | None = None
        """Why the tracker takes nothing of us, by its last word; None: it does."""
        self._pending = dict(pending)
        self._rewound: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def acknowledged(self) -> int:
        """Everything up to it has its answer here."""
        return next(iter(self._pending), self.next_sequence) - 1

    def submit(self, message: Durable, now: Instant) -> int:
        """Takes a message, which is in the outbox already, and gives its sequence."""
        sequence = self.next_sequence
        self.next_sequence += 1
        self._pending[sequence] = Pending(message, now)
        return sequence

    def due(self, now: Instant) -> Iterator[tuple[int, bytes]]:
        """The frames to be sent now, with their sequences, in order; tell `sent` of each."""
        head = next(iter(self._pending.values()), None)
        if head and head.sent_ns is not None and now.monotonic_ns - head.sent_ns >= RESEND_NS:
            self._rewind(0)
        for sequence, pending in list(islice(self._pending.items(), WINDOW)):
            if pending.sent_ns is None:
                yield sequence, self._frame(sequence, pending.message, self._age_ms(pending, now), now)

    def sent(self, sequence: int, now: Instant) -> None:
        """The frame of `sequence` is on its way."""
        self._pending[sequence].sent_ns = now.monotonic_ns

    def volatile(self, message: Volatile, now: Instant) -> bytes:
        """The frame of a message that is sent once."""
        return self._frame(0, message, 0, now)

    def next_deadline(self) -> int | None:
        """When something is to be sent again (monotonic); something unsent is due at 0."""
        head = next(iter(self._pending.values()), None)
        if head is None:
            return None
        unsent = any(pending.sent_ns is None for pending in islice(self._pending.values(), WINDOW))
        return 0 if unsent or head.sent_ns is None else head.sent_ns + RESEND_NS

    def receive(self, frame: bytes, now: Instant) -> Answer | None:
        """What a frame of the tracker says to us; None: nothing new. ProtocolError, OutboxOutdated."""
        reply = decode_reply(frame)
        if reply.incarnation != self.incarnation:
            return None
        match reply.body:
            case ResendFrom(sequence):
                self._resend_from(sequence, now)
                return None
            case OutboxSuperseded(incarnation):
                self._superseded(incarnation)
                return None
            case NotAllowed(reason):
                self.denied = reason
                return None
            case _:
                self.denied = None
                return self._matched(reply.sequence, reply.body)

    def _matched(self, sequence: int, body: ReplyBody) -> Answer | None:
        if sequence == 0:
            return Answer(0, None, body, inherited=False)
        pending = self._pending.pop(sequence, None)
        if pending is None:
            return None  # a repeat's answer: the first one was here
        return Answer(sequence, pending.message, body, pending.inherited)

    def _resend_from(self, sequence: int, now: Instant) -> None:
        rewound_to, at_ns = self._rewound
        if rewound_to == sequence and now.monotonic_ns - at_ns < REWIND_PAUSE_NS:
            return
        self._rewound = (sequence, now.monotonic_ns)
        self._rewind(sequence)

    def _rewind(self, first: int) -> None:
        for sequence, pending in islice(self._pending.items(), WINDOW):
            if sequence >= first:
                pending.sent_ns = None

    def _superseded(self, incarnation: int) -> None:
        if self.next_sequence - 1 != len(self._pending):  # something of this outbox had its answer
            raise OutboxOutdated(
                f"the tracker knows a newer outbox of worker {self.worker!r}: does another machine use this"
                f" name, or was an old outbox put back? (ours {self.incarnation}, newer {incarnation})"
            )
        # A new outbox made by a clock that had gone back: nothing of it was ever taken, so it may be renamed.
        self.incarnation = incarnation + 1
        self.renumbered = True
        self._rewind(0)

    def _frame(self, sequence: int, body: Durable | Volatile, age_ms: int, now: Instant) -> bytes:
        request = Request(
            self.worker, self.incarnation, sequence, self.acknowledged, age_ms, now.wall_ns, body
        )
        return encode_request(request)

    @staticmethod
    def _age_ms(pending: Pending, now: Instant) -> int:
        submitted = pending.submitted
        # The monotonic clock of a process before this one may have been another boot's.
        age_ns = (
            now.wall_ns - submitted.wall_ns
            if pending.inherited
            else now.monotonic_ns - submitted.monotonic_ns
        )
        return AGE_UNKNOWN_MS if age_ns < 0 else min(age_ns // MILLISECOND_NS, AGE_UNKNOWN_MS)


def inherited(message: Durable, submitted_wall_ns: int) -> Pending:
    """A message that a process before this one left in the outbox."""
    return replace(Pending(message, Instant(submitted_wall_ns, 0)), inherited=True)
