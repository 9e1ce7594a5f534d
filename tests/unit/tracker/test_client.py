"""The worker's side without a tracker: nothing is lost, nothing waits, and full is said."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.tracker.wire import ANN, at, claim, opening
from tracker.client import OutboxFull, TrackerClient, ask_status
from tracker.events import KernelStateRestored
from tracker.messages import Heartbeat


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TrackerClient]:
    client = opened(tmp_path)
    yield client
    client.close()


def opened(tmp_path: Path) -> TrackerClient:
    endpoint = "ipc:///nonexistent/tracker.ipc"
    return TrackerClient.open(endpoint, worker="w1", outbox=tmp_path / "outbox", now=at(0), limit=20)


def test_without_a_tracker_messages_wait_and_heartbeats_are_not_sent(client: TrackerClient) -> None:
    assert client.submit(opening(), at(1)) == 1
    assert client.submit_all([claim(ANN), claim(ANN)], at(1)) == [2, 3]
    assert client.pending == 3
    assert not client.send(Heartbeat("gw", 1, 1), at(1))
    assert client.receive(at(1)) == []
    deadline = client.next_deadline()
    assert deadline is not None
    assert at(1).monotonic_ns < deadline <= at(2).monotonic_ns
    client.tick(at(3))


def test_what_is_unanswered_is_there_for_the_next_process(tmp_path: Path) -> None:
    client = opened(tmp_path)
    client.submit(opening(), at(1))
    client.close()
    again = opened(tmp_path)
    assert again.pending == 1
    assert again.submit(claim(ANN), at(2)) == 2
    again.close()


def test_claims_are_refused_while_reports_still_find_room(client: TrackerClient) -> None:
    for _ in range(18):
        client.submit(claim(ANN), at(1))
    assert not client.room_for_claims
    with pytest.raises(OutboxFull, match="for reports"):
        client.submit(claim(ANN), at(1))
    hole = KernelStateRestored("gw", 1, "table", 1, 2)
    assert client.submit_all([hole, hole], at(1)) == [19, 20]
    with pytest.raises(OutboxFull, match="limit is 20"):
        client.submit(hole, at(1))
    assert client.pending == 20


def test_nobody_s_status_is_none() -> None:
    assert ask_status("ipc:///nonexistent/reader.ipc", 0.05) is None
