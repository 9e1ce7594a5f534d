"""Mutated messages at the codec and at the machine: refused or taken, never a crash; memory stays flat.

By hand: pytest tests/unit/tracker/test_hostile_input.py --mutations 1000000 --timeout 0
"""

import random
import tracemalloc
from dataclasses import dataclass

import msgpack
import pytest

from tests.mutation import hostile_frames, mutated, valid_frames
from tests.unit.tracker.talk import Talk
from tests.unit.tracker.wire import ANN, at, claim, opening
from tracker.events import Ending
from tracker.messages import (
    REQUEST_KINDS,
    Acknowledged,
    ClaimGranted,
    Reply,
    SessionGranted,
    decode_body,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from tracker.orders import EndFreeze, Withdrawing
from tracker.roles import Caller, Role
from tracker.shapes import ProtocolError, unpack

SEED = 20_261_122
CALLERS = (
    Caller(Role.WORKER, "unix:0"),
    Caller(Role.WORKER, "w1", frozenset({"gw"}), "key 1"),
    Caller(Role.OPERATOR, "olga", key="key 2"),
    Caller(Role.READER, "unix:1000"),
)


@dataclass(frozen=True, slots=True)
class Enumerated:
    """A shape with a value of few."""

    ending: Ending


@pytest.fixture
def mutations(request: pytest.FixtureRequest) -> int:
    number: int = request.config.getoption("--mutations")
    return number


def test_the_hostile_frames_are_the_same_for_a_seed_and_of_every_kind() -> None:
    assert list(hostile_frames(5, 300)) == list(hostile_frames(5, 300))
    frames = valid_frames(random.Random(5), ("w1",), ("gw",))
    assert {type(decode_request(next(frames)).body) for _ in range(1000)} == set(REQUEST_KINDS.values())


def test_a_mutated_frame_is_one_error_or_a_message_with_no_other_form(mutations: int) -> None:
    refused = 0
    for frame in hostile_frames(SEED, mutations):
        try:
            assert encode_request(decode_request(frame)) == frame
        except ProtocolError:
            refused += 1
        for decode in (decode_reply, decode_body):
            try:
                decode(frame)
            except ProtocolError:
                continue
    assert mutations * 0.5 < refused < mutations * 0.95


@pytest.mark.parametrize("place", ["version", "kind", "body"])
def test_a_value_that_is_nested_deeply_is_one_error(place: str) -> None:
    """Found by a million mutations: what named it went as deep as the value."""
    nested: object = 1
    for _ in range(1000):
        nested = (nested,)
    values = [1, 46, "olga", 0, 0, 0, 0, 5, (None, "why")]
    values[{"version": 0, "kind": 1, "body": 8}[place]] = nested
    with pytest.raises(ProtocolError):
        decode_request(msgpack.packb(values))
    with pytest.raises(ProtocolError):
        unpack(Enumerated, (nested,))


def test_mutated_replies_are_one_error_or_a_reply() -> None:
    chance = random.Random(SEED)
    granted = encode_reply(Reply(7, 1, Withdrawing(1, "w1", lost=False)))
    taken = encode_reply(Reply(7, 2, Acknowledged()))
    for _ in range(2000):
        frame = mutated(granted, taken, chance)
        try:
            assert encode_reply(decode_reply(frame)) == frame
        except ProtocolError:
            continue


def test_no_mutated_message_stops_the_tracker_and_the_next_client_is_served(mutations: int) -> None:
    talk = Talk()
    chance = random.Random(SEED)
    for number, frame in enumerate(hostile_frames(SEED + 1, mutations // 4)):
        talk.machine.receive(chance.randrange(5), frame, at(2 + number / 10_000), chance.choice(CALLERS))
        if number % 20 == 0:
            talk.flush()
    talk.flush()
    end = 3 + mutations // 40_000
    talk.say(EndFreeze(None, "an order that is well made is carried out"), 0, end)
    opened = talk.say(opening("calm"), 1, end, worker="quiet")[0].body
    assert isinstance(opened, SessionGranted)
    granted = talk.say(claim(ANN, opened.epoch, gateway="calm"), 2, end, worker="quiet")[0].body
    assert isinstance(granted, ClaimGranted)


def test_what_is_refused_leaves_nothing_in_memory() -> None:
    frames = [frame for frame in hostile_frames(SEED + 2, 3000) if not _taken(frame)]
    talk = Talk()

    def shout() -> None:
        for frame in frames:
            talk.machine.receive("noise", frame, at(2), CALLERS[0])
        talk.flush()

    shout()
    tracemalloc.start()
    try:
        shout()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(3):
            shout()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000, f"{after - before} octets after {3 * len(frames)} frames"


def _taken(frame: bytes) -> bool:
    try:
        decode_request(frame)
    except ProtocolError:
        return False
    return True
