"""Frames in, batches out: each message once, in order, whatever the network and the processes do."""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import Record
from eventlog.snapshot import snapshot_fields
from tests.unit.tracker.wire import (
    ANN,
    BOB,
    OPERATOR,
    READER,
    SECOND_NS,
    WORKER,
    at,
    claim,
    counting,
    opening,
    operator,
    speaker,
)
from tracker.conversation import Answer, Conversation, OutboxOutdated, inherited
from tracker.events import (
    BindingWithdrawn,
    ClaimsFrozen,
    Ending,
    KernelStateRestored,
    KeyChanged,
    PortBound,
    RecordsMissed,
    Restraint,
    SnapshotTaken,
    TrackerStarted,
    WorkerLost,
    from_record,
)
from tracker.instant import Instant
from tracker.machine import Batch, Machine, Signed
from tracker.messages import (
    Acknowledged,
    Body,
    CheckpointMade,
    ClaimGranted,
    ClaimRefusal,
    ClaimRefused,
    Durable,
    FindPort,
    GetCheckpoint,
    GetStatus,
    Heartbeat,
    HeartbeatAcknowledged,
    MakeCheckpoint,
    NoCheckpoint,
    NotAllowed,
    OutboxSuperseded,
    PortFound,
    Protection,
    Reply,
    Request,
    ResendFrom,
    SessionGranted,
    Status,
    WithdrawalView,
    WithdrawBinding,
    decode_reply,
    encode_request,
)
from tracker.orders import FreezeClaims, LiftBar, ReleaseBinding, RevokeBinding, Withdrawing, Withdrawn
from tracker.transitions import State


class Disk:
    """What outlives a tracker: the records and answers of the batches that were appended."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.answers: dict[tuple[str, int, int], bytes] = {}
        self.latest: dict[str, tuple[str, int, int]] = {}
        self._nonces = counting()

    def append(self, batch: Batch) -> None:
        self.records.extend(batch.records)
        for answer in batch.answers:
            key = (answer.worker, answer.incarnation, answer.sequence)
            assert key not in self.answers, "decided twice"
            self.answers[key] = answer.frame
            self.latest[answer.worker] = key
        for seen in batch.seen.values():
            of_worker = seen.worker, seen.incarnation
            for key in [key for key in self.answers if key[:2] == of_worker and key[2] <= seen.through]:
                del self.answers[key]

    def machine(self, now: Instant, key: str | None = None) -> Machine:
        machine = Machine(
            State(lease_ms=10_000),
            version="1",
            nonce=lambda: next(self._nonces),
            stored_answer=lambda *key: self.answers.get(key),
            key=key,
            consistency=lambda old, new: [bytes([old, new]) * 16],
        ).recover(self.records, self.latest.values())
        machine.start(now, "boot", None)
        return machine

    def events(self) -> list[object]:
        return [from_record(record) for record in self.records]


class Talk:
    """One tracker, spoken to in requests."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.disk = Disk()
        self.machine = self.disk.machine(at(0), key)
        self.flush()

    def flush(self) -> list[Reply]:
        batch = self.machine.take()
        self.disk.append(batch)
        return [decode_reply(frame) for _, frame in batch.frames]

    def restart(self, seconds: float) -> None:
        self.machine = self.disk.machine(at(seconds), self.key)
        self.flush()

    def say(
        self,
        body: Body,
        sequence: int,
        seconds: float = 1,
        *,
        incarnation: int = 7,
        acknowledged: int = 0,
        worker: str = "w1",
        age_ms: int = 0,
    ) -> list[Reply]:
        request = Request(worker, incarnation, sequence, acknowledged, age_ms, 5, body)
        self.machine.receive("peer", encode_request(request), at(seconds), speaker(body, worker))
        return self.flush()


@pytest.fixture
def talk() -> Talk:
    talk = Talk()
    (reply,) = talk.say(opening(), 1)
    assert isinstance(reply.body, SessionGranted)
    return talk


def hole(number: int) -> KernelStateRestored:
    return KernelStateRestored("gw", 1, "table", number, number)


def test_an_answer_carries_the_sequence_and_the_incarnation_of_its_request(talk: Talk) -> None:
    (reply,) = talk.say(claim(ANN), 2)
    assert (reply.incarnation, reply.sequence, type(reply.body)) == (7, 2, ClaimGranted)


@pytest.mark.parametrize("restart", [False, True])
def test_a_repeat_gets_the_first_answer_again_and_no_record(talk: Talk, restart: bool) -> None:
    first = talk.say(claim(ANN), 2)
    talk.say(dataclasses.replace(claim(BOB), mac=None), 3)
    if restart:
        talk.restart(2)
    size = len(talk.disk.records)
    assert talk.say(claim(ANN), 2, 3) == first
    assert len(talk.disk.records) == size


def test_a_repeat_within_the_same_batch_gets_the_first_answer_again(talk: Talk) -> None:
    frame = encode_request(Request("w1", 7, 2, 0, 0, 5, claim(ANN)))
    talk.machine.receive("one", frame, at(2), WORKER)
    talk.machine.receive("two", frame, at(2), WORKER)
    batch = talk.machine.take()
    assert [peer for peer, _ in batch.frames] == ["one", "two"]
    assert batch.frames[0][1] == batch.frames[1][1]
    assert len(batch.records) == len(batch.answers) == 1


def test_a_repeat_of_what_was_forgotten_is_acknowledged(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    talk.say(hole(1), 3, acknowledged=2)
    (reply,) = talk.say(claim(ANN), 2)
    assert reply.body == Acknowledged()


def test_a_message_too_early_is_not_taken_but_asked_for_in_order(talk: Talk) -> None:
    size = len(talk.disk.records)
    (reply,) = talk.say(hole(3), 4)
    assert reply.body == ResendFrom(2)
    assert len(talk.disk.records) == size
    assert [it.body for number in (2, 3, 4) for it in talk.say(hole(number), number)] == [Acknowledged()] * 3


def test_messages_that_a_tracker_before_this_log_answered_are_a_record(talk: Talk) -> None:
    talk.say(hole(2), 2, 5, age_ms=3000)
    assert talk.say(hole(6), 7, 6, acknowledged=5)[0].body == ResendFrom(6)
    talk.say(hole(5), 6, 6, acknowledged=5)
    assert talk.disk.events()[-2:] == [RecordsMissed("w1", 7, 3, 5, at(2).wall_ns), hole(5)]


def test_a_new_outbox_of_a_known_worker_is_a_hole_of_unknown_length(talk: Talk) -> None:
    talk.restart(2)
    talk.say(opening(), 1, 3, incarnation=8)
    missed = talk.disk.events()[-3]
    assert missed == RecordsMissed("w1", 7, 2, None, at(1).wall_ns)
    (reply,) = talk.say(claim(ANN, epoch=2), 2, 3, incarnation=8)
    assert isinstance(reply.body, ClaimGranted)


@pytest.mark.parametrize("body", [Heartbeat("gw", 1, 1), hole(1)])
def test_an_older_outbox_is_told_that_it_is(talk: Talk, body: Body) -> None:
    (reply,) = talk.say(body, 0 if isinstance(body, Heartbeat) else 9, incarnation=6)
    assert reply == Reply(6, 0 if isinstance(body, Heartbeat) else 9, OutboxSuperseded(7))


def test_a_stale_claim_is_refused(talk: Talk) -> None:
    (reply,) = talk.say(claim(ANN), 2, age_ms=1001)
    assert reply.body == ClaimRefused(ClaimRefusal.STALE, None, None)


def test_a_heartbeat_is_answered_and_leaves_nothing_behind(talk: Talk) -> None:
    size = len(talk.disk.records)
    (reply,) = talk.say(Heartbeat("gw", 1, 77), 0, 4)
    assert reply.body == HeartbeatAcknowledged("gw", 1, 77, 10_000)
    assert len(talk.disk.records) == size
    assert talk.machine.next_deadline() == at(14).monotonic_ns


def test_time_alone_brings_the_loss_of_a_worker(talk: Talk) -> None:
    talk.machine.pass_time(at(11))
    talk.flush()
    assert talk.disk.events()[-1] == WorkerLost("gw", 1, "w1", at(1).wall_ns)
    assert talk.disk.records[-1].source.name == "tracker"


def test_the_tracker_s_own_records_have_a_source_of_their_own_in_each_run(talk: Talk) -> None:
    talk.restart(2)
    talk.restart(3)
    sources = [it.source for it in talk.disk.records if isinstance(from_record(it), TrackerStarted)]
    assert [(source.name, source.incarnation) for source in sources] == [
        ("tracker", 1),
        ("tracker", 2),
        ("tracker", 3),
    ]
    assert len({it.source for it in talk.disk.records}) == len(talk.disk.records)


def test_garbage_is_counted_by_place_and_the_next_frame_is_served(talk: Talk) -> None:
    request = encode_request(Request("w1", 7, 2, 0, 0, 5, claim(ANN)))
    for frame in (b"", b"\xff" * 99, request[:-1], b"\x00" * 70_000, request[:1] + b"\x02" + request[2:]):
        talk.machine.receive("noise", frame, at(2), WORKER)
    assert talk.flush() == []
    assert talk.machine.counters["garbage: frame"] == 4
    assert talk.machine.counters["garbage: version"] == 1
    assert isinstance(talk.say(claim(ANN), 2)[0].body, ClaimGranted)


def test_a_reader_asks_and_does_not_command(talk: Talk) -> None:
    for body, sequence in ((GetStatus(), 0), (claim(ANN), 2)):
        frame = encode_request(Request("w1", 7, sequence, 0, 0, 5, body))
        talk.machine.receive("reader", frame, at(2), READER)
    status, refused = (reply.body for reply in talk.flush())
    assert refused == NotAllowed("ClaimPort is for worker, unix:1000 is reader")
    assert isinstance(status, Status)
    assert [(it.gateway, it.epoch, it.lost, it.lease_left_ms) for it in status.sessions] == [
        ("gw", 1, False, 9000)
    ]
    assert (status.records, status.run) == (len(talk.disk.records), 1)
    assert talk.machine.counters["refused: role"] == 1


# ---- checkpoints -----------------------------------------------------------------------------------------


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


@given(st.lists(st.binary(max_size=60), max_size=30))
def test_no_frame_stops_the_machine(frames: list[bytes]) -> None:
    talk = Talk()
    for frame in frames:
        talk.machine.receive("noise", frame, at(1), WORKER)
    assert talk.flush() == []
    assert sum(talk.machine.counters.values()) == len(frames)


# ---- both halves, and a network between ------------------------------------------------------------------


def test_a_young_outbox_made_by_a_slow_clock_is_renamed_and_then_taken() -> None:
    talk = Talk()
    talk.say(opening(), 1, incarnation=100)
    worker = Conversation("w1", 50, 1)
    worker.submit(opening(), at(2))
    answers = exchange(worker, talk, at(2)) + exchange(worker, talk, at(2))
    assert worker.incarnation == 101
    assert worker.renumbered
    assert [type(answer.reply) for answer in answers] == [SessionGranted]


def test_an_outbox_that_was_heard_and_is_now_outdated_ends_the_worker() -> None:
    talk = Talk()
    worker = Conversation("w1", 50, 1)
    worker.submit(opening(), at(1))
    exchange(worker, talk, at(1))
    talk.say(opening(), 1, incarnation=100)
    worker.submit(hole(1), at(2))
    with pytest.raises(OutboxOutdated, match="w1"):
        exchange(worker, talk, at(2))


def exchange(worker: Conversation, talk: Talk, now: Instant) -> list[Answer]:
    for sequence, frame in worker.due(now):
        worker.sent(sequence, now)
        talk.machine.receive("peer", frame, now, WORKER)
    batch = talk.machine.take()
    talk.disk.append(batch)
    answers = [worker.receive(frame, now) for _, frame in batch.frames]
    return [answer for answer in answers if answer is not None]


class Chaos:
    """Worker, tracker and a network that loses, doubles and reorders; either side dies at any moment."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.passed_ns = 0
        self.disk = Disk()
        self.outbox: dict[int, tuple[int, Durable]] = {}
        self.next_sequence = 1
        self.submitted: list[Durable] = []
        self.answered: dict[int, object] = {}
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.late_up: list[bytes] = []
        self.late_down: list[bytes] = []
        self.machine = self.disk.machine(self.now())
        self.worker = Conversation("w1", 7, 1)

    def now(self) -> Instant:
        return at(self.passed_ns / SECOND_NS)

    def step(self, calm: bool) -> None:
        self.passed_ns += self.chance.randrange(SECOND_NS // 2)
        if not calm:
            self.disturb()
        for sequence, frame in self.worker.due(self.now()):
            self.worker.sent(sequence, self.now())
            self.up.extend(self.network(frame, self.late_up, calm))
        arrived, self.up, self.late_up = self.up, self.late_up, []
        for frame in arrived:
            self.machine.receive("peer", frame, self.now(), WORKER)
        batch = self.machine.take()
        if not calm and self.chance.random() < 0.1:
            self.machine = self.disk.machine(self.now())  # died before the append: nobody was answered
            return
        self.disk.append(batch)
        if not calm and self.chance.random() < 0.1:
            self.machine = self.disk.machine(self.now())  # died after it, before the answers
            return
        for _, frame in batch.frames:
            self.down.extend(self.network(frame, self.late_down, calm))
        arrived, self.down, self.late_down = self.down, self.late_down, []
        for frame in arrived:
            if (answer := self.worker.receive(frame, self.now())) is not None:
                assert answer.sequence not in self.answered
                self.answered[answer.sequence] = answer.reply
                del self.outbox[answer.sequence]

    def disturb(self) -> None:
        for _ in range(self.chance.randrange(3)):
            message = hole(len(self.submitted)) if self.submitted else opening()
            sequence = self.worker.submit(message, self.now())
            self.outbox[sequence] = (self.now().wall_ns, message)
            self.submitted.append(message)
            self.next_sequence = sequence + 1
        if self.chance.random() < 0.1:
            left = [(it, inherited(body, wall_ns)) for it, (wall_ns, body) in self.outbox.items()]
            self.worker = Conversation("w1", 7, self.next_sequence, left)

    def network(self, frame: bytes, late: list[bytes], calm: bool) -> Iterator[bytes]:
        for _ in range(1 if calm else self.chance.choice([0, 1, 1, 1, 2])):
            if not calm and self.chance.random() < 0.2:
                late.append(frame)
            else:
                yield frame


@pytest.mark.parametrize("seed", range(60))
def test_every_message_is_in_the_log_once_and_in_order_whatever_is_lost_doubled_or_killed(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(60):
        chaos.step(calm=False)
    for _ in range(40):
        chaos.step(calm=True)
    logged = [event for event in chaos.disk.events() if isinstance(event, KernelStateRestored)]
    assert logged == chaos.submitted[1:]
    assert sorted(chaos.answered) == list(range(1, len(chaos.submitted) + 1))
    assert len(chaos.worker) == 0
    kinds = {type(event) for event in chaos.disk.events()}
    assert RecordsMissed not in kinds, "a hole was invented"
    assert PortBound not in kinds


# ---- orders ----------------------------------------------------------------------------------------------


def frames_by_peer(talk: Talk) -> list[tuple[object, object]]:
    batch = talk.machine.take()
    talk.disk.append(batch)
    return [(peer, decode_reply(frame).body) for peer, frame in batch.frames]


def order_from(talk: Talk, order: Body, seconds: float = 2) -> list[tuple[object, object]]:
    request = Request("olga", 0, 0, 0, 0, 5, order)
    talk.machine.receive("operator", encode_request(request), at(seconds), operator("olga"))
    return frames_by_peer(talk)


def test_an_operator_hears_at_once_that_the_worker_is_told_and_later_that_it_is_done(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    order = WithdrawBinding("gw", 1, Ending.RELEASE)
    assert order_from(talk, ReleaseBinding(1, "lunch")) == [
        ("operator", Withdrawing(1, "w1", lost=False)),
        ("peer", order),
    ]
    talk.machine.receive(
        "peer", encode_request(Request("w1", 7, 0, 2, 0, 5, Heartbeat("gw", 1, 1))), at(3), WORKER
    )
    assert [body for _, body in frames_by_peer(talk)][1:] == [order]
    done = BindingWithdrawn("gw", 1, 1, Ending.RELEASE, at(3).wall_ns, None, 3, 400, 2)
    talk.machine.receive("peer", encode_request(Request("w1", 7, 3, 2, 0, 5, done)), at(3), WORKER)
    assert set(frames_by_peer(talk)) == {
        ("peer", Acknowledged()),
        ("operator", Withdrawn(1, Ending.RELEASE, at(3).wall_ns)),
    }


def test_a_worker_is_told_of_an_order_from_before_the_restart_when_it_is_heard(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    order_from(talk, ReleaseBinding(1, "lunch"))
    talk.restart(3)
    assert order_from(talk, ReleaseBinding(1, "lunch"), 3) == [("operator", Withdrawing(1, "w1", lost=False))]
    (_, order) = talk.say(Heartbeat("gw", 1, 1), 0, 4)
    assert order.body == WithdrawBinding("gw", 1, Ending.RELEASE)


def test_a_port_is_found_by_number_port_service_host_and_gateway(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    anything = FindPort(None, None, None, None, None, None)

    def found(**wanted: Any) -> tuple[list[str], list[int]]:
        ((_, body),) = order_from(talk, dataclasses.replace(anything, **wanted))
        assert isinstance(body, PortFound)
        return [place.service for place in body.places], [view.binding for view in body.bindings]

    assert found() == (["cuseeme", "shared"], [1])
    assert found(binding=1)[1] == found(port=7648)[1] == found(port=7649, protocol=6)[1] == [1]
    assert found(binding=2)[1] == found(holder=BOB)[1] == []
    assert found(port=7649, protocol=1) == found(port=80) == found(gateway="gw2") == ([], [])
    assert found(service="shared") == (["shared"], [])


def test_a_status_shows_restrictions_and_what_is_being_ended(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    order_from(talk, RevokeBinding(1, 60_000, "noise"))
    (reply,) = talk.say(GetStatus(), 0)
    assert isinstance(reply.body, Status)
    (restriction,) = reply.body.restrictions
    assert (restriction.restraint, restriction.host, restriction.by) == (Restraint.REVOKED, ANN, "olga")
    assert restriction.until_ns == at(62).wall_ns
    assert reply.body.withdrawals == (WithdrawalView(1, Ending.REVOKE),)


def test_a_command_that_repeats_its_order_bars_nobody_whose_bar_was_lifted(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    for order in (RevokeBinding(1, None, "noise"), LiftBar(ANN, None, None, "sorry")):
        order_from(talk, order, 3)
    size = len(talk.disk.events())
    order_from(talk, RevokeBinding(1, None, "noise"), 4)
    assert len(talk.disk.events()) == size


def test_a_reader_gives_no_orders(talk: Talk) -> None:
    frame = encode_request(Request("olga", 0, 0, 0, 0, 5, ReleaseBinding(1, "lunch")))
    talk.machine.receive("reader", frame, at(2), READER)
    refused = NotAllowed("ReleaseBinding is for operator, unix:1000 is reader")
    assert frames_by_peer(talk) == [("reader", refused)]
    assert talk.machine.counters["refused: role"] == 1


def test_a_local_operator_is_named_by_what_he_says_and_by_who_he_is(talk: Talk) -> None:
    frame = encode_request(Request("olga", 0, 0, 0, 0, 5, FreezeClaims(None, "work")))
    talk.machine.receive("operator", frame, at(2), OPERATOR)
    frames_by_peer(talk)
    assert talk.disk.events()[-1] == ClaimsFrozen(None, "olga (unix:0)", "work")
