"""Frames in, batches out: each message once, in order, whatever the network and the processes do."""

import dataclasses
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tracker.talk import Disk, Talk, hole
from tests.unit.tracker.wire import (
    ANN,
    BOB,
    READER,
    SECOND_NS,
    WORKER,
    at,
    claim,
    opening,
)
from tracker.conversation import Answer, Conversation, OutboxOutdated, inherited
from tracker.events import (
    KernelStateRestored,
    PortBound,
    RecordsMissed,
    TrackerStarted,
    WorkerLost,
    from_record,
)
from tracker.instant import Instant
from tracker.messages import (
    Acknowledged,
    Body,
    ClaimGranted,
    ClaimRefusal,
    ClaimRefused,
    Durable,
    GetStatus,
    Heartbeat,
    HeartbeatAcknowledged,
    NotAllowed,
    OutboxSuperseded,
    Reply,
    Request,
    ResendFrom,
    SessionGranted,
    Status,
    encode_request,
)


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
