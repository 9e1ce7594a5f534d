"""Readers of the feed, killed, stopped, late, and with a tracker that dies: each sees each position once."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog.reading import LogReader
from tests.crash.place import ROOT, Place, answers, hole, opening, settle
from tracker.clock import read_clock
from tracker.feed import FeedOver, Piece, Present
from tracker.follower import Follower, current_state
from tracker.image import Fold

PATIENCE_S = 60.0


class Tail:
    """`porthold log tail --follow` as a process; `positions` is what it has printed, whole lines only."""

    def __init__(self, place: Place, first: int) -> None:
        self.positions: list[int] = []
        words = ["tail", "--follow", "--json", "--from", str(first), "--config", str(place.configuration)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tools.log import command; command()", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):  # else it was killed in the middle of it
                self.positions.append(json.loads(line)["position"])

    def await_size(self, size: int) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not self.positions or self.positions[-1] < size - 1:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline_s, f"{self.positions[-1:]} of {size}"
            time.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGKILL) -> list[int]:
        self.process.send_signal(number)
        self.process.wait(20)
        self._reading.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return self.positions


@pytest.fixture
def tails() -> Iterator[list[Tail]]:
    started: list[Tail] = []
    yield started
    for tail in started:
        if tail.process.poll() is None:
            tail.process.send_signal(signal.SIGCONT)
            tail.end()


def log_size(place: Place) -> int:
    with LogReader.open(place.log) as log:
        return log.size


def follow(follower: Follower, size: int) -> list[Piece]:
    """What a reader gets until it has seen everything of a log of this size."""
    found: list[Piece] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while follower.position < size:
        assert time.monotonic() < deadline_s, f"at {follower.position} of {size}"
        found += follower.receive(0.2)
    return found


def positions(pieces: list[Piece]) -> list[int]:
    return [piece.position for piece in pieces if isinstance(piece, Present)]


def test_a_reader_that_is_killed_and_one_that_is_stopped_miss_nothing_and_delay_nobody(
    place: Place, tails: list[Tail]
) -> None:
    place.start()
    client = place.client()
    settle(client, opening())
    killed, stopped = Tail(place, 0), Tail(place, 0)
    tails += [killed, stopped]
    settle(client, *[hole(number) for number in range(100)])
    for tail in tails:
        tail.await_size(100)
    stopped.process.send_signal(signal.SIGSTOP)
    settle(client, *[hole(number) for number in range(100, 1000)])
    before = killed.end()
    settle(client, *[hole(number) for number in range(1000, 4000)])
    late = Tail(place, before[-1] + 1)
    tails.append(late)
    stopped.process.send_signal(signal.SIGCONT)
    settle(client, *[hole(number) for number in range(4000, 4200)])
    client.close()
    size = log_size(place)
    assert size > 4200
    for tail in (late, stopped):
        tail.await_size(size)
    assert before + late.end(signal.SIGINT) == list(range(size))
    assert stopped.end(signal.SIGINT) == list(range(size))
    assert (late.process.returncode, stopped.process.returncode) == (0, 0)


def test_a_tracker_that_is_killed_and_restarted_under_its_readers_is_followed_on(place: Place) -> None:
    place.start()
    client = place.client()
    settle(client, opening())
    with Follower.open(place.reader_endpoint, "early", 0) as early:
        found = follow(early, log_size(place))
        for _ in range(3):
            client.submit_all([hole(number) for number in range(300)], read_clock())
            found += early.receive(0.05)
            place.kill()
            found += early.receive(0.05)
            place.start()
            answers(client, lambda: client.pending == 0)
        with Follower.open(place.reader_endpoint, "late", 50) as late:
            settle(client, hole(1))
            size = log_size(place)
            assert positions(follow(late, size)) == list(range(50, size))
        found += follow(early, size)
    client.close()
    assert positions(found) == list(range(size))
    with LogReader.open(place.log) as log:
        entries = list(log.read(0, size))
    assert [(it.data, it.leaf) for it in found if isinstance(it, Present)] == [
        (entry.data, entry.leaf) for entry in entries
    ]


def test_the_state_and_the_records_after_it_give_what_all_records_give(place: Place) -> None:
    place.start()
    client = place.client()
    settle(client, opening(), *[hole(number) for number in range(50)])
    answer = current_state(place.reader_endpoint, "clone", 20)
    assert answer is not None
    size, fold = answer
    settle(client, *[hole(number) for number in range(50)], opening())
    client.close()
    whole = Fold()
    with LogReader.open(place.log) as log, Follower.open(place.reader_endpoint, "clone", size) as follower:
        assert size <= log.size - 50
        for piece in follow(follower, log.size):
            assert isinstance(piece, Present)
            record = log.entry(piece.position).record
            assert record is not None
            fold.apply(piece.position, record)
        for entry in log.read():
            assert entry.record is not None
            whole.apply(entry.position, entry.record)
    assert fold.state() == whole.state()


def test_a_reader_of_a_log_that_was_put_back_is_told_and_ends(place: Place, tmp_path: Path) -> None:
    place.start()
    client = place.client()
    settle(client, opening(), *[hole(number) for number in range(50)])
    with Follower.open(place.reader_endpoint, "reader", 0) as follower:
        follow(follower, log_size(place))
        client.close()
        place.kill(signal.SIGTERM)
        for path in place.directory.glob("log.sqlite*"):
            path.unlink()
        place.start()
        with pytest.raises(FeedOver, match="it followed another log"):
            follow(follower, 10**9)
    tail = Tail(place, 1000)
    assert tail.process.wait(20) == 1
    tail.end()
