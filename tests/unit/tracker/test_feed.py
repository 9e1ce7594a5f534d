"""The feed's two halves, with a network between them that loses, doubles and stops: each position once."""

import dataclasses
from collections.abc import Iterator
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tracker.wire import SECOND_NS
from tracker import feed
from tracker.feed import (
    FORGOTTEN_NS,
    WINDOW,
    FedRecord,
    Feed,
    FeedGap,
    FeedOver,
    FeedRecords,
    FeedRefused,
    Following,
    Missing,
    Piece,
    Present,
    Readers,
    ReadFeed,
    state_parts,
)
from tracker.instant import Instant


def at(seconds: float) -> Instant:
    return Instant(0, round(seconds * SECOND_NS))


def leaf(position: int, log: int = 0) -> bytes:
    return sha256(b"%d %d" % (log, position)).digest()


class Log:
    """Records 0, 1, 2 …; `gone` are missing."""

    def __init__(self, size: int, gone: range = range(0), number: int = 0) -> None:
        self.size = size
        self.gone = gone
        self.number = number
        self.read_in_all = 0

    def read(self, first: int, end: int) -> Iterator[Piece]:
        while first < end:
            if first in self.gone:
                until = min(end, self.gone.stop)
                yield Missing(first, until, "pruned")
                first = until
                continue
            self.read_in_all += 1
            yield Present(first, b"%d" % first, leaf(first, self.number))
            first += 1


def serve(readers: Readers, log: Log) -> list[tuple[object, Feed]]:
    return [(peer, told) for peer, _, told in readers.serve(log.size, log.read)]


def taken(pieces: list[Piece]) -> list[int]:
    """The positions, one after the other."""
    found: list[int] = []
    for piece in pieces:
        found += [piece.position] if isinstance(piece, Present) else range(piece.first, piece.end)
    return found


def ask(position: int = 0, room: int = WINDOW, *, anew: bool = True, after: bytes | None = None) -> ReadFeed:
    return ReadFeed(position, room, anew, after)


# ---- the tracker's half ----------------------------------------------------------------------------------


def test_a_reader_gets_what_it_has_room_for_and_no_more_until_it_says_so() -> None:
    readers, log = Readers(), Log(100)
    readers.ask("a", 1, ask(90, 4), at(0))
    ((_, told),) = serve(readers, log)
    assert isinstance(told, FeedRecords)
    assert (told.first, [it.data for it in told.records], told.size) == (
        90,
        [b"90", b"91", b"92", b"93"],
        100,
    )
    assert serve(readers, log) == []
    assert not readers.is_behind(100)
    readers.ask("a", 1, ask(92, 4, anew=False), at(1))
    ((_, told),) = serve(readers, log)
    assert isinstance(told, FeedRecords)
    assert (told.first, len(told.records)) == (94, 2)


def test_a_reader_at_the_end_is_greeted_once_and_then_hears_what_is_new() -> None:
    readers, log = Readers(), Log(3)
    readers.ask("a", 1, ask(3), at(0))
    assert serve(readers, log) == [("a", FeedRecords(3, (), 3))]
    assert serve(readers, log) == []
    log.size = 4
    assert serve(readers, log) == [("a", FeedRecords(3, (FedRecord(b"3", leaf(3)),), 4))]


def test_what_is_gone_is_said_to_be_gone() -> None:
    readers, log = Readers(), Log(6, range(1, 4))
    readers.ask("a", 1, ask(0), at(0))
    first, gap, last = (told for _, told in serve(readers, log))
    assert gap == FeedGap(1, 4, "pruned", 6)
    assert isinstance(first, FeedRecords)
    assert isinstance(last, FeedRecords)
    assert (len(first.records), last.first, len(last.records)) == (1, 4, 2)


def test_who_catches_up_does_not_keep_the_others_waiting_nor_the_tracker_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "RECORDS_PER_ROUND", 10)
    readers, log = Readers(), Log(1000)
    for peer in ("far", "near"):
        readers.ask(peer, 1, ask(0 if peer == "far" else 995), at(0))
    assert [peer for peer, _ in serve(readers, log)] == ["far"]
    assert [peer for peer, _ in serve(readers, log)] == ["near", "far"]
    assert log.read_in_all == 20
    assert readers.is_behind(1000)


def test_readers_at_the_same_place_cost_one_reading() -> None:
    readers, log = Readers(), Log(100)
    for peer in range(50):
        readers.ask(peer, 1, ask(90), at(0))
    assert len(serve(readers, log)) == 50
    assert log.read_in_all == 10


def test_a_reader_that_is_silent_is_forgotten_and_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "READERS_LIMIT", 2)
    readers = Readers()
    assert readers.ask("a", 1, ask(), at(0)) is readers.ask("b", 1, ask(), at(20)) is None
    assert isinstance(readers.ask("c", 1, ask(), at(21)), FeedRefused)
    assert readers.ask("a", 1, ask(), at(22)) is None
    later = Instant(0, at(20).monotonic_ns + FORGOTTEN_NS + 1)
    assert readers.ask("c", 1, ask(), later) is None
    assert len(readers) == 2


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (ask(6), "5 records, the reader has seen 6"),
        (ask(5, after=leaf(4, 1)), "record 4 is another one"),
    ],
)
def test_a_reader_of_another_log_is_refused(asked: ReadFeed, why: str) -> None:
    readers = Readers()
    readers.ask("a", 1, asked, at(0))
    ((_, told),) = serve(readers, Log(5))
    assert isinstance(told, FeedRefused)
    assert why in told.reason
    with pytest.raises(FeedOver, match=why):
        Following(5).receive(told, at(0))
    assert len(readers) == 0


def test_long_records_are_sent_in_frames_that_fit() -> None:
    def read(first: int, end: int) -> Iterator[Piece]:
        for position in range(first, end):
            yield Present(position, bytes(64 * 1024), leaf(position))

    readers = Readers()
    readers.ask("a", 1, ask(), at(0))
    following = Following(0)
    sizes = []
    for _, _, told in readers.serve(100, read):
        assert isinstance(told, FeedRecords)
        sizes.append(len(told.records))
        following.receive(told, at(0))
    assert (sum(sizes), max(sizes), following.position) == (100, 5, 100)


def test_a_state_is_sent_in_parts_that_make_it_whole() -> None:
    for size in (0, 1, feed.FRAME_OCTETS, 3 * feed.FRAME_OCTETS + 5):
        image = bytes(index % 251 for index in range(size))
        parts = list(state_parts(7, image))
        assert b"".join(part.data for part in parts) == image
        assert [(part.number, part.parts, part.size) for part in parts] == [
            (number, len(parts), 7) for number in range(len(parts))
        ]


# ---- the reader's half -----------------------------------------------------------------------------------


def test_a_reader_asks_at_once_and_again_each_second_of_silence() -> None:
    following = Following(7, leaf(6))
    assert following.due(at(10)) == ReadFeed(7, WINDOW, True, leaf(6))
    assert following.due(at(10.9)) is None
    assert following.next_deadline() == at(11).monotonic_ns
    assert following.due(at(11)) == ReadFeed(7, WINDOW, True, leaf(6))


def test_a_hole_is_asked_for_and_not_for_each_frame_behind_it() -> None:
    following = Following(0)
    following.due(at(0))
    assert following.receive(FeedRecords(3, (FedRecord(b"3", leaf(3)),), 5), at(0.5)) == []
    asked = following.due(at(0.5))
    assert asked is not None
    assert (asked.position, asked.anew) == (0, True)
    assert following.receive(FeedRecords(4, (FedRecord(b"4", leaf(4)),), 5), at(0.6)) == []
    assert following.due(at(0.6)) is None
    assert following.due(at(0.71)) is not None


def test_what_comes_twice_counts_once() -> None:
    following = Following(0)
    records = tuple(FedRecord(b"%d" % position, leaf(position)) for position in range(4))
    assert taken(following.receive(FeedRecords(0, records[:3], 4), at(0))) == [0, 1, 2]
    assert taken(following.receive(FeedRecords(1, records[1:], 4), at(0))) == [3]
    assert following.receive(FeedRecords(0, records, 4), at(0)) == []
    assert following.receive(FeedGap(1, 3, "pruned", 4), at(0)) == []
    assert following.receive(FeedGap(2, 6, "pruned", 8), at(0)) == [Missing(4, 6, "pruned")]
    assert following.size == 8


# ---- both ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Step:
    """What happens in a tenth of a second: records come, frames are lost, somebody is away or starts anew."""

    appended: int
    lost: tuple[bool, ...]
    stopped: bool
    restarted: bool
    moved: bool


steps = st.builds(
    Step,
    st.integers(0, 40),
    st.tuples(*[st.sampled_from([False, False, True])] * 6),
    st.booleans(),
    st.sampled_from([False] * 9 + [True]),
    st.sampled_from([False] * 9 + [True]),
)


@given(st.lists(steps, max_size=40), st.integers(0, 30), st.integers(0, 20))
def test_whatever_the_network_does_each_position_comes_once_and_in_order(
    play: list[Step], start: int, gone: int
) -> None:
    readers, log, following = Readers(), Log(30, range(5, 5 + gone)), Following(start)
    peer, now_s = 0, 0.0
    inbox: list[Feed] = []
    found: list[int] = []
    quiet = [Step(0, (False,) * 6, False, False, False)] * 25
    for step in (*play, *quiet):
        now_s += 0.1
        log.size += step.appended
        lost = iter(step.lost)
        if step.restarted:
            readers = Readers()
        if step.moved:
            peer, inbox = peer + 1, []
        if not step.stopped:
            for told in inbox:
                found += taken(following.receive(told, at(now_s)))
            inbox = []
            asked = following.due(at(now_s))
            if asked is not None and not next(lost):
                readers.ask(peer, 0, asked, at(now_s))
        for to, told in serve(readers, log):
            if to == peer and not next(lost, False):
                inbox.append(told)
        assert sum(len(it.records) for it in inbox if isinstance(it, FeedRecords)) <= 2 * WINDOW
    for told in inbox:
        found += taken(following.receive(told, at(now_s)))
    assert found == list(range(start, log.size))
