"""The worker's half of the talk: when it says what again, and how old it says it is."""

import pytest

from tests.unit.tracker.wire import ANN, at, claim, opening
from tracker.conversation import WINDOW, Conversation, inherited
from tracker.events import Ending
from tracker.instant import Instant
from tracker.messages import (
    AGE_UNKNOWN_MS,
    Acknowledged,
    Heartbeat,
    NotAllowed,
    Reply,
    ReplyBody,
    Request,
    ResendFrom,
    WithdrawBinding,
    decode_request,
    encode_reply,
)
from tracker.shapes import ProtocolError


@pytest.fixture
def talk() -> Conversation:
    return Conversation("w1", 7, 1)


def sent(talk: Conversation, now: Instant) -> list[Request]:
    frames = list(talk.due(now))
    for sequence, _ in frames:
        talk.sent(sequence, now)
    return [decode_request(frame) for _, frame in frames]


def sequences(talk: Conversation, now: Instant) -> list[int]:
    return [request.sequence for request in sent(talk, now)]


def answered(sequence: int, body: ReplyBody) -> bytes:
    return encode_reply(Reply(7, sequence, body))


def test_what_is_submitted_is_due_once_and_again_after_a_second_without_answer(talk: Conversation) -> None:
    assert [talk.submit(claim(ANN), at(0)) for _ in range(3)] == [1, 2, 3]
    assert talk.next_deadline() == 0
    assert sequences(talk, at(0)) == [1, 2, 3]
    assert talk.next_deadline() == at(1).monotonic_ns
    assert sequences(talk, at(0.99)) == []
    assert sequences(talk, at(1)) == [1, 2, 3]


def test_an_answer_takes_its_message_away_and_moves_the_acknowledgement(talk: Conversation) -> None:
    for _ in range(3):
        talk.submit(claim(ANN), at(0))
    sent(talk, at(0))
    answer = talk.receive(answered(2, Acknowledged()), at(0.1))
    assert answer is not None
    assert (answer.sequence, answer.request, answer.inherited) == (2, claim(ANN), False)
    assert talk.acknowledged == 0
    assert talk.receive(answered(2, Acknowledged()), at(0.1)) is None
    talk.receive(answered(1, Acknowledged()), at(0.2))
    assert talk.acknowledged == 2
    assert [(it.sequence, it.acknowledged) for it in sent(talk, at(2))] == [(3, 2)]
    talk.receive(answered(3, Acknowledged()), at(3))
    assert (talk.acknowledged, len(talk), talk.next_deadline()) == (3, 0, None)


def test_what_the_tracker_misses_is_sent_again_at_once_and_the_echo_is_not_heard(talk: Conversation) -> None:
    for _ in range(3):
        talk.submit(claim(ANN), at(0))
    sent(talk, at(0))
    assert talk.receive(answered(0, ResendFrom(2)), at(0.1)) is None
    assert sequences(talk, at(0.1)) == [2, 3]
    talk.receive(answered(0, ResendFrom(2)), at(0.15))
    assert sequences(talk, at(0.15)) == []
    talk.receive(answered(0, ResendFrom(2)), at(0.4))
    assert sequences(talk, at(0.4)) == [2, 3]


def test_only_a_window_is_on_its_way(talk: Conversation) -> None:
    for _ in range(WINDOW + 1):
        talk.submit(opening(), at(0))
    assert sequences(talk, at(0)) == list(range(1, WINDOW + 1))
    talk.receive(answered(1, Acknowledged()), at(0))
    assert sequences(talk, at(0)) == [WINDOW + 1]


def test_a_message_says_how_old_it_is_when_it_is_sent(talk: Conversation) -> None:
    talk.submit(claim(ANN), at(0))
    assert [request.age_ms for request in sent(talk, at(0.25))] == [250]
    stepped = Instant(at(-9000).wall_ns, at(2).monotonic_ns)
    assert [request.age_ms for request in sent(talk, stepped)] == [2000]


@pytest.mark.parametrize(("submitted_s", "age_ms"), [(-60, 60_000), (60, AGE_UNKNOWN_MS)])
def test_a_message_of_the_process_before_is_as_old_as_the_wall_clock_says(
    submitted_s: float, age_ms: int
) -> None:
    left = [(4, inherited(claim(ANN), at(submitted_s).wall_ns))]
    talk = Conversation("w1", 7, 9, left)
    (request,) = sent(talk, at(0))
    assert (request.sequence, request.age_ms, request.acknowledged) == (4, age_ms, 3)
    answer = talk.receive(answered(4, Acknowledged()), at(0))
    assert answer is not None
    assert answer.inherited


def test_an_order_comes_through_and_what_is_for_another_outbox_does_not(talk: Conversation) -> None:
    order = WithdrawBinding("gw", 3, Ending.REVOKE)
    answer = talk.receive(answered(0, order), at(0))
    assert answer is not None
    assert (answer.sequence, answer.request, answer.reply) == (0, None, order)
    assert talk.receive(encode_reply(Reply(8, 0, order)), at(0)) is None


def test_a_heartbeat_has_no_sequence(talk: Conversation) -> None:
    request = decode_request(talk.volatile(Heartbeat("gw", 1, 5), at(0)))
    assert (request.sequence, request.body) == (0, Heartbeat("gw", 1, 5))
    assert len(talk) == 0


def test_an_answer_that_is_none_is_a_protocol_error(talk: Conversation) -> None:
    with pytest.raises(ProtocolError):
        talk.receive(b"\xc0", at(0))


def test_what_is_not_allowed_stays_and_is_said_again_until_it_is(talk: Conversation) -> None:
    talk.submit(claim(ANN), at(0))
    assert sequences(talk, at(0)) == [1]
    assert talk.receive(answered(1, NotAllowed("w1 speaks for gw, not for gw2")), at(0.1)) is None
    assert (len(talk), talk.denied) == (1, "w1 speaks for gw, not for gw2")
    assert sequences(talk, at(0.5)) == []
    assert sequences(talk, at(1)) == [1]
    assert talk.receive(answered(1, Acknowledged()), at(1.1)) is not None
    assert (len(talk), talk.denied) == (0, None)
