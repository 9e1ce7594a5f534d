"""The feed: records by position, live and from the log, to any number of readers; no I/O, no clock.

Rule 1: a reader has room for so many records beyond those it has taken, and is never sent more: a slow or
stopped one costs the tracker nothing, and no queue on the way is ever full. Rule 2: a position says what was
lost on the way, and a reader that hears nothing asks again from where it is: each record comes once, in
order. Rule 3: what is said of a record that is gone is that it is gone. Rule 4: a reader that has a record
that this log has not, or another one there, is refused: it followed another log. Rule 5: in one round all
readers together get a bounded number of records that have to be read.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final

from tracker.instant import Instant
from tracker.shapes import Count, Hash, Limits, Text

WINDOW: Final = 512
"""Records on their way to a reader, at most."""
READERS_LIMIT: Final = 256
RECORDS_PER_ROUND: Final = 256
FRAME_OCTETS: Final = 256 * 1024
SECOND_NS: Final = 1_000_000_000
FORGOTTEN_NS: Final = 30 * SECOND_NS
"""A reader that says nothing for so long has to ask anew; a living one says something each second."""
SILENCE_NS: Final = SECOND_NS
"""So long without a word of the tracker, and the reader asks anew."""
PAUSE_NS: Final = SECOND_NS // 5


@dataclass(frozen=True, slots=True)
class ReadFeed:
    """A reader has all before `position`, and room for so many from there on.

    `anew`: what was sent from there on has not come. `leaf`: of the record before `position`, if it has that.
    """

    position: Count
    room: Annotated[int, Limits(1, WINDOW)]
    anew: bool
    leaf: Hash | None


@dataclass(frozen=True, slots=True)
class FedRecord:
    """`data` None: redacted."""

    data: Annotated[bytes, Limits(0, 2**20)] | None
    leaf: Hash


@dataclass(frozen=True, slots=True)
class FeedRecords:
    """The records from `first` on; the log has `size` by now, so that a reader knows how far behind it is."""

    first: Count
    records: tuple[FedRecord, ...]
    size: Count


@dataclass(frozen=True, slots=True)
class FeedGap:
    """The records from `first` up to `end` are gone: pruned, or in an archive that is not there."""

    first: Count
    end: Count
    why: Text
    size: Count


@dataclass(frozen=True, slots=True)
class FeedRefused:
    """There is nothing to be had here for this reader."""

    reason: Text


@dataclass(frozen=True, slots=True)
class GetState:
    """A reader begins with the state as it is, and goes on with the records after it."""


@dataclass(frozen=True, slots=True)
class StatePart:
    """Part `number` of `parts`, from 0, of the state (tracker.image) after the first `size` records."""

    size: Count
    number: Count
    parts: Count
    data: Annotated[bytes, Limits(0, 2**20)]


def state_parts(size: int, image: bytes) -> Iterator[StatePart]:
    """The image of the state, in parts that fit a frame."""
    starts = range(0, max(1, len(image)), FRAME_OCTETS)
    for number, start in enumerate(starts):
        yield StatePart(size, number, len(starts), image[start : start + FRAME_OCTETS])


Feed = FeedRecords | FeedGap | FeedRefused


@dataclass(frozen=True, slots=True)
class Present:
    """The record at `position`; `data` None: it is redacted, its leaf stays."""

    position: int
    data: bytes | None
    leaf: bytes


@dataclass(frozen=True, slots=True)
class Missing:
    """The records from `first` up to `end` are not to be had."""

    first: int
    end: int
    why: str


Piece = Present | Missing
Read = Callable[[int, int], Iterable[Piece]]
"""Of the log: what there is from a position up to another."""


# ---- the tracker's half ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Reader:
    """`number` comes with its questions, and goes with what answers them; `greeted`: it has heard of us."""

    number: int
    next: int
    until: int
    heard_ns: int
    leaf: bytes | None = None
    greeted: bool = False


@dataclass(slots=True)
class Readers:
    """Who follows the log, and how far each one is."""

    _readers: dict[Hashable, Reader] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._readers)

    def ask(self, peer: Hashable, number: int, asked: ReadFeed, now: Instant) -> FeedRefused | None:
        """Takes a reader's word; what it gets is in the next `serve`. None: it is served."""
        for gone in [it for it, reader in self._readers.items() if _is_forgotten(reader, now)]:
            del self._readers[gone]
        reader = self._readers.get(peer)
        if reader is None:
            if len(self._readers) >= READERS_LIMIT:
                return FeedRefused(f"{READERS_LIMIT} readers follow this log already; try again later")
            reader = self._readers[peer] = Reader(number, asked.position, 0, 0)
        if asked.anew:
            reader.next, reader.leaf, reader.greeted = asked.position, asked.leaf, False
        reader.number, reader.heard_ns = number, now.monotonic_ns
        reader.until = asked.position + asked.room
        return None

    def serve(self, size: int, read: Read) -> Iterator[tuple[Hashable, int, Feed]]:
        """What goes out now, the log having `size` records: (peer, number, what it is told)."""
        left = RECORDS_PER_ROUND
        known: dict[tuple[int, int], list[FeedRecords | FeedGap]] = {}
        for peer in list(self._readers):
            reader = self._readers[peer]
            if not reader.greeted:
                refused = _refused(reader, size, read)
                if refused is not None:
                    del self._readers[peer]
                    yield peer, reader.number, refused
                    continue
            span = reader.next, min(reader.until, size, reader.next + left)
            if span[0] >= span[1]:
                if not reader.greeted and (reader.next >= size or left > 0):
                    reader.greeted = True
                    yield peer, reader.number, FeedRecords(reader.next, (), size)
                continue
            if span not in known:
                known[span] = list(_told(read(*span), size))
                left -= span[1] - span[0]
            reader.next, reader.greeted = span[1], True
            # Behind the others: who catches up must not keep them waiting.
            self._readers[peer] = self._readers.pop(peer)
            for told in known[span]:
                yield peer, reader.number, told

    def is_behind(self, size: int) -> bool:
        """Whether somebody has room for what there is already."""
        return any(reader.next < min(reader.until, size) for reader in self._readers.values())


def _is_forgotten(reader: Reader, now: Instant) -> bool:
    return now.monotonic_ns - reader.heard_ns > FORGOTTEN_NS


def _refused(reader: Reader, size: int, read: Read) -> FeedRefused | None:
    if reader.next > size:
        return FeedRefused(
            f"this log has {size} records, the reader has seen {reader.next}: it followed another log"
        )
    if reader.leaf is None or reader.next == 0:
        return None
    for before in read(reader.next - 1, reader.next):
        if isinstance(before, Present) and before.leaf != reader.leaf:
            return FeedRefused(
                f"record {reader.next - 1} is another one here: the reader followed another log"
            )
    return None


def _told(pieces: Iterable[Piece], size: int) -> Iterator[FeedRecords | FeedGap]:
    """In frames of at most FRAME_OCTETS, a single longer record aside."""
    first, octets, records = 0, 0, list[FedRecord]()
    for piece in pieces:
        if records and (isinstance(piece, Missing) or octets > FRAME_OCTETS):
            yield FeedRecords(first, tuple(records), size)
            octets, records = 0, []
        if isinstance(piece, Missing):
            yield FeedGap(piece.first, piece.end, piece.why[:256], size)
            continue
        first = first if records else piece.position
        octets += len(piece.data or b"")
        records.append(FedRecord(piece.data, piece.leaf))
    if records:
        yield FeedRecords(first, tuple(records), size)


# ---- the reader's half -----------------------------------------------------------------------------------


class FeedOver(Exception):
    """The tracker has nothing for this reader, and says why."""


class Following:
    """A reader's place in the log: `due` says what to ask, `receive` what is new in what has come."""

    def __init__(self, position: int, leaf: bytes | None = None) -> None:
        self.position = position
        self.size: int | None = None
        """Of the log, when the tracker last said something; None: it never has."""
        self._leaf = leaf
        self._until = position
        self._anew = True
        self._asked_ns: int | None = None
        self._heard_ns: int | None = None

    def due(self, now: Instant) -> ReadFeed | None:
        """What to say now, if anything; it counts as said."""
        if now.monotonic_ns >= self.next_deadline():
            self._anew = True
        elif self._anew or self._until - self.position > WINDOW // 2:
            return None
        asked = ReadFeed(self.position, WINDOW, self._anew, self._leaf)
        self._anew, self._asked_ns, self._until = False, now.monotonic_ns, self.position + WINDOW
        return asked

    def next_deadline(self) -> int:
        """When to ask anew if nothing comes, by the monotonic clock; 0: now."""
        if self._anew and self._asked_ns is not None:
            return self._asked_ns + PAUSE_NS
        said = [at for at in (self._asked_ns, self._heard_ns) if at is not None]
        return max(said) + SILENCE_NS if said else 0

    def receive(self, told: Feed, now: Instant) -> list[Piece]:
        """What is new in it, in order, each position once. FeedOver."""
        if isinstance(told, FeedRefused):
            raise FeedOver(told.reason)
        self._heard_ns, self.size = now.monotonic_ns, told.size
        if told.first > self.position:
            self._anew = True  # what lies between was lost on the way
            return []
        if isinstance(told, FeedGap):
            if told.end <= self.position:
                return []
            missing = Missing(self.position, told.end, told.why)
            self.position, self._leaf = told.end, None
            return [missing]
        fresh = told.records[self.position - told.first :]
        pieces = [Present(at, it.data, it.leaf) for at, it in enumerate(fresh, self.position)]
        if pieces:
            self.position, self._leaf = pieces[-1].position + 1, pieces[-1].leaf
        return list(pieces)
