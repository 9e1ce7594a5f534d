"""Checkpoints in the machine: who is told of them, who may order one, and what a snapshot's record says."""

import pytest

from eventlog.snapshot import snapshot_fields
from tests.unit.tracker.talk import Talk
from tests.unit.tracker.wire import (
    ANN,
    READER,
    WORKER,
    at,
    claim,
    opening,
)
from tracker.events import (
    KeyChanged,
    SnapshotTaken,
    TrackerStarted,
)
from tracker.machine import Signed
from tracker.messages import (
    CheckpointMade,
    GetCheckpoint,
    GetStatus,
    Heartbeat,
    HeartbeatAcknowledged,
    MakeCheckpoint,
    NoCheckpoint,
    NotAllowed,
    Protection,
    Request,
    Status,
    decode_reply,
    encode_request,
)


@pytest.fixture
def signing() -> Talk:
    talk = Talk("key")
    talk.say(opening(), 1)
    return talk


def told(talk: Talk) -> list[tuple[str, int, object]]:
    """What the batch at hand sends: to whom, as an answer to what, and what it says."""
    batch = talk.machine.take()
    talk.disk.append(batch)
    replies = [(peer, decode_reply(frame)) for peer, frame in batch.frames]
    return [(str(peer), reply.sequence, reply.body) for peer, reply in replies]


def test_another_key_than_the_log_s_is_its_first_record_of_a_run_and_the_same_one_none(signing: Talk) -> None:
    assert signing.disk.events()[:2] == [KeyChanged("key", None), TrackerStarted(1, "1", "boot", None)]
    signing.restart(2)
    signing.key = "new"
    signing.restart(3)
    signing.key = None
    signing.restart(4)
    kinds = [type(event) for event in signing.disk.events()[-4:]]
    assert kinds == [TrackerStarted, KeyChanged, TrackerStarted, TrackerStarted]
    assert signing.machine.state.key == "new"


def test_each_worker_that_was_heard_gets_each_checkpoint_with_the_proof_from_the_one_before(
    signing: Talk,
) -> None:
    signing.say(Heartbeat("gw", 1, 1), 0, 2)
    signing.say(Heartbeat("gw", 1, 1), 0, 2, worker="never heard a message of")
    signing.machine.checkpoint_made(Signed(b"first", 2, 5))
    assert told(signing) == [("peer", 0, CheckpointMade(b"first", 0, ()))]
    signing.machine.checkpoint_made(Signed(b"second", 7, 6))
    assert told(signing) == [("peer", 0, CheckpointMade(b"second", 2, (bytes([2, 7]) * 16,)))]
    signing.machine.checkpoint_made(Signed(b"second", 7, 6))
    assert told(signing) == []


def test_a_worker_that_is_heard_from_another_place_gets_the_latest_checkpoint(signing: Talk) -> None:
    signing.machine.checkpoint_made(Signed(b"note", 2, 5))
    signing.flush()
    frame = encode_request(Request("w1", 7, 0, 0, 0, 5, Heartbeat("gw", 1, 1)))
    for peer in ("elsewhere", "elsewhere"):
        signing.machine.receive(peer, frame, at(2), WORKER)
    answer = ("elsewhere", 0, HeartbeatAcknowledged("gw", 1, 1, 10_000))
    assert told(signing) == [answer, ("elsewhere", 0, CheckpointMade(b"note", 0, ())), answer]


@pytest.mark.parametrize(
    ("size", "since"), [(0, 0), (1, 1), (7, 7), (8, 0)], ids=["none", "older", "same", "newer than ours"]
)
def test_whoever_asks_gets_the_latest_checkpoint_and_the_proof_from_his(
    signing: Talk, size: int, since: int
) -> None:
    assert signing.say(GetCheckpoint(size), 0)[0].body == NoCheckpoint("none is made yet")
    signing.machine.checkpoint_made(Signed(b"note", 7, 5))
    signing.flush()
    proof = (bytes([since, 7]) * 16,) if since else ()
    assert signing.say(GetCheckpoint(size), 0)[0].body == CheckpointMade(b"note", since, proof)


def test_an_order_waits_for_its_checkpoint_and_is_refused_where_nobody_signs(signing: Talk) -> None:
    assert signing.say(MakeCheckpoint(), 0, worker="operator", incarnation=0) == []
    assert signing.machine.checkpoint_ordered
    signing.machine.checkpoint_made(Signed(b"note", 2, 5))
    assert not signing.machine.checkpoint_ordered
    assert told(signing) == [("peer", 0, CheckpointMade(b"note", 0, ()))] * 2  # the order's, and the worker's
    unsigned = Talk()
    (refused,) = unsigned.say(MakeCheckpoint(), 0, worker="operator", incarnation=0)
    assert refused.body == NoCheckpoint("no key signs this log")
    assert not unsigned.machine.checkpoint_ordered


def test_a_reader_may_ask_for_the_checkpoint_and_not_order_one(signing: Talk) -> None:
    for body in (GetCheckpoint(0), MakeCheckpoint()):
        frame = encode_request(Request("reader", 0, 0, 0, 0, 5, body))
        signing.machine.receive("reader", frame, at(2), READER)
    assert [type(reply.body) for reply in signing.flush()] == [NoCheckpoint, NotAllowed]
    assert signing.machine.counters["refused: role"] == 1
    assert not signing.machine.checkpoint_ordered


def test_the_status_says_how_much_is_protected(signing: Talk) -> None:
    def protection(talk: Talk) -> Protection | None:
        (reply,) = talk.say(GetStatus(), 0)
        assert isinstance(reply.body, Status)
        return reply.body.protection

    assert protection(Talk()) is None
    assert protection(signing) == Protection("key", 0, None)
    signing.machine.checkpoint_made(Signed(b"note", 2, 5))
    signing.flush()
    assert protection(signing) == Protection("key", 2, 5)


def test_a_snapshot_s_record_is_the_next_batch_and_says_what_it_is_of(signing: Talk) -> None:
    size = len(signing.disk.records)
    snapshot = signing.machine.snapshot(at(3), bytes(32))
    signing.flush()
    assert (snapshot.name, snapshot.size) == ("tracker", size)
    assert signing.disk.records[-1].fields == snapshot_fields(snapshot, bytes(32))
    assert isinstance(signing.disk.events()[-1], SnapshotTaken)
    signing.say(claim(ANN), 2, 4)
    assert signing.machine.state.highest_wall_ns == at(4).wall_ns
