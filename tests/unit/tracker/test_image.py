"""A restart from a snapshot is the same as folding the log, whatever has happened before and comes after."""

import dataclasses
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import Record, Source
from eventlog.snapshot import Snapshot, StateFold
from tests.unit.tracker.test_ownership import commands
from tests.unit.tracker.wire import ANN, BOB, REFLECTOR, WORKER, at, claim, counting, opening, operator
from tracker import image
from tracker.events import HolderNamed, Restraint
from tracker.image import Fold, Memory
from tracker.instant import Instant
from tracker.machine import Machine
from tracker.messages import Body, CloseSession, Durable, Request, encode_request
from tracker.orders import FreezeClaims, ReservePort, RevokeBinding
from tracker.ownership import Command, FromOperator, FromWorker, PassTime
from tracker.restrictions import Restriction, Scope
from tracker.shapes import ProtocolError
from tracker.transitions import Binding, Gateway, State

LEASE_MS = 10_000
ROOT = bytes(32)


class Log:
    """Records, answers and snapshots of one tracker, as the disk would have them."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.snapshots: list[Snapshot] = []
        self.latest: dict[str, tuple[str, int, int]] = {}

    def take(self, machine: Machine) -> list[bytes]:
        batch = machine.take()
        self.records.extend(batch.records)
        self.latest.update((it.worker, (it.worker, it.incarnation, it.sequence)) for it in batch.answers)
        return [frame for _, frame in batch.frames]

    def take_snapshot(self, machine: Machine, now: Instant) -> None:
        self.snapshots.append(machine.snapshot(now, ROOT))
        self.take(machine)

    def machine(self, snapshot: Snapshot | None = None, nonces: Iterator[bytes] | None = None) -> Machine:
        source = nonces or counting(len(self.records))
        machine = Machine(
            State(LEASE_MS), version="1", nonce=lambda: next(source), stored_answer=lambda *_: None
        )
        records = self.records[0 if snapshot is None else snapshot.size :]
        return machine.recover(records, self.latest.values(), snapshot)


class Play:
    """A tracker that takes commands, keeps snapshots and is started again now and then."""

    def __init__(self) -> None:
        self.log = Log()
        self.sequences: dict[str, int] = {}
        self.machine = self.log.machine()
        self.machine.start(at(0), "boot", None)
        self.log.take(self.machine)

    def do(self, command: Command, now: Instant) -> list[bytes]:
        match command:
            case FromWorker(worker, body, age_ms):
                self.machine.receive("peer", self.request(worker, body, age_ms), now, WORKER)
            case FromOperator(by, order):
                self.machine.receive(
                    "peer", encode_request(Request(by, 0, 0, 0, 0, 5, order)), now, operator(by)
                )
            case PassTime():
                self.machine.pass_time(now)
            case _:
                self.machine = self.log.machine()
                self.machine.start(now, "boot", None)
        return self.log.take(self.machine)

    def request(self, worker: str, body: Body, age_ms: int) -> bytes:
        sequence = 0
        if not hasattr(body, "nonce"):  # a heartbeat has one, and no sequence
            sequence = self.sequences[worker] = self.sequences.get(worker, 0) + 1
        return encode_request(Request(worker, 7, sequence, 0, age_ms, 5, body))


def plainly(value: object) -> Any:
    """Everything in it, also what `==` leaves out: uncompared fields, and the order of dictionaries."""
    if dataclasses.is_dataclass(value):
        return [plainly(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return [(plainly(key), plainly(item)) for key, item in value.items()]
    if isinstance(value, set):
        return sorted(value)
    return value


LIVELY: list[tuple[Command, int, bool]] = [
    (FromWorker("w1", opening()), 1, False),
    (FromWorker("w1", claim(ANN)), 1, True),
    (FromWorker("w1", claim(BOB)), 1, False),
    (FromWorker("w2", opening("gw2")), 1, False),
    (FromWorker("w2", claim(BOB, gateway="gw2")), 1, False),
    (FromWorker("w2", claim(ANN, gateway="gw2", service="shared", peer=REFLECTOR)), 1, True),
    (FromOperator("olga", RevokeBinding(1, 5000, "noise")), 1, True),
    (FromOperator("olga", ReservePort("gw", "shared", BOB, "his demo")), 1, False),
    (FromWorker("w1", claim(ANN, service="shared", peer=REFLECTOR)), 1, True),
]
"""A beginning that chance alone seldom finds: two gateways, three bindings, one refusal, an operator."""

histories = st.builds(
    lambda beginning, more: LIVELY[:beginning] + more,
    st.integers(0, len(LIVELY)),
    st.lists(st.tuples(commands(), st.integers(0, 12), st.booleans()), max_size=40),
)


@given(histories, histories)
def test_the_state_from_a_snapshot_is_the_folded_state_and_so_is_all_that_follows(
    before: list[tuple[Command, int, bool]], after: list[tuple[Command, int, bool]]
) -> None:
    play = Play()
    passed = 0
    for command, seconds, keep in before:
        passed += seconds
        play.do(command, at(passed))
        if keep:
            play.log.take_snapshot(play.machine, at(passed))
    folded = play.log.machine()
    for snapshot in play.log.snapshots:
        restored = play.log.machine(snapshot)
        assert plainly(restored._memory) == plainly(folded._memory)
    if not play.log.snapshots:
        return
    folded, restored = play.log.machine(), play.log.machine(play.log.snapshots[-1])
    for machine in (folded, restored):
        machine.start(at(passed), "boot", None)
    for command, seconds, _ in after:
        passed += seconds
        frame = None
        if isinstance(command, FromWorker):
            frame = play.request(command.worker, command.body, command.age_ms)
        elif isinstance(command, FromOperator):
            frame = encode_request(Request(command.by, 0, 0, 0, 0, 5, command.body))
        for machine in (folded, restored):
            if frame is None:
                machine.pass_time(at(passed))
            else:
                machine.receive("peer", frame, at(passed), WORKER)
        assert restored.take() == folded.take()


@given(histories)
def test_the_same_records_give_the_same_image_whether_lived_through_or_folded(
    history: list[tuple[Command, int, bool]],
) -> None:
    play = Play()
    fold: StateFold = Fold()
    passed = folded = 0
    for command, seconds, keep in history:
        passed += seconds
        play.do(command, at(passed))
        if keep:
            for position, record in enumerate(play.log.records[folded:], folded):
                fold.apply(position, record)
            folded = len(play.log.records)
            play.log.take_snapshot(play.machine, at(passed))
            assert play.log.snapshots[-1].state == fold.state()


def test_a_snapshot_of_what_is_not_appended_yet_is_refused() -> None:
    play = Play()
    play.machine.receive("peer", play.request("w1", opening(), 0), at(1), WORKER)
    with pytest.raises(RuntimeError, match="not appended"):
        play.machine.snapshot(at(1), ROOT)


def test_an_image_begins_with_what_is_not_logged_as_folding_does() -> None:
    play = Play()
    play.do(FromWorker("w1", opening()), at(1))
    play.do(FromWorker("w1", claim(ANN)), at(2))
    for second in (3, 4, 5):
        play.do(FromWorker("w1", claim(BOB)), at(second))
    memory = image.decoded(image.encoded(play.machine._memory), lease_ms=1)
    (refusals,) = memory.state.bindings[1].refusals.values()
    assert (refusals.count, refusals.last_ns) == (1, at(3).wall_ns)
    session = memory.state.gateways["gw"].session
    assert session is not None
    assert (session.heard_ns, session.deadline_ns) == (at(1).wall_ns, 0)
    assert (memory.state.clock_offset_ns, memory.state.lease_ms) == (None, 1)
    assert memory.told_ns == {"w1": at(3).wall_ns}


def known_memory() -> Memory:
    """One of everything that an image can hold."""
    play = Play()
    bodies: list[Durable] = [opening(), claim(ANN), claim(BOB), HolderNamed("gw", 1, 1, "Ann")]
    bodies += [opening("gw2"), CloseSession("gw2", 1)]
    for second, body in enumerate(bodies):
        play.do(FromWorker("w1", body), at(second))
    play.do(FromWorker("w2", opening()), at(6))
    play.do(FromOperator("olga", RevokeBinding(1, 60_000, "noise")), at(7))
    play.do(FromOperator("olga", FreezeClaims(None, "work")), at(7))
    play.do(FromWorker("w1", claim(BOB, service="shared", peer=REFLECTOR)), at(7))
    play.machine.state.key = "log.example/1+01020304+AQ=="
    return play.machine._memory


def test_whoever_changes_the_image_or_what_events_do_to_it_raises_its_version() -> None:
    digest = sha256(image.encoded(known_memory())).hexdigest()
    assert (image.VERSION, digest) == (4, DIGEST_OF_VERSION_4)


DIGEST_OF_VERSION_4 = "fd2ff84b78b112ed12e0d220f9e41d264178dedbe55cae7b3beba008ea3c9f08"


def test_everything_that_is_compared_is_in_the_image() -> None:
    state = known_memory().state
    compared = {
        (shape.__name__, field.name)
        for shape in (State, Gateway, Binding, Restriction)
        for field in dataclasses.fields(shape)
        if field.compare
    }
    session = state.gateways["gw"].session
    assert session is not None
    changes: list[tuple[Any, dict[str, Any]]] = [
        (state, {"run": 9, "key": None, "next_binding": 9, "highest_wall_ns": 9}),
        (state.gateways["gw"], {"epoch": 9, "worker": None, "trusted_epoch": 9, "session": None}),
        (state.gateways["gw"], {"last_ending": None, "services": {}, "host": "h9", "moved_epoch": 9}),
        (session, {"epoch": 9, "worker": "w9", "host": "h9", "public_addresses": (), "opened_ns": 9}),
        (session, {"lost_since_ns": 9, "refused": set(), "lease_ms": 9, "fence": True}),
        (state.bindings[1], {"since_ns": 9, "user_name": None, "refusals": {}, "ordered": None}),
        (state, {"restrictions": {}}),
        *(
            (it, {"until_ns": 9, "by": "o", "why": "w", "since_ns": 9, "reserved_for": BOB, "denied": set()})
            for it in state.restrictions.values()
        ),
        *((it, {"scope": Scope(Restraint.FROZEN, "gw9")}) for it in state.restrictions.values()),
    ]
    changed: set[tuple[str, str]] = set()
    for target, fields in changes:
        for name, other in fields.items():
            before, mine = image.encoded(Memory(state)), getattr(target, name)
            if mine == other:
                continue
            setattr(target, name, other)
            assert image.encoded(Memory(state)) != before, f"{name} is not in the image"
            setattr(target, name, mine)
            changed.add((type(target).__name__, name))
    made_from_others = {("State", "held"), ("Gateway", "bindings")}
    held_in_parts = {("State", "gateways"), ("State", "bindings"), ("Binding", "bound")}
    never_set_here = {("Gateway", "last_ending")}
    assert compared - changed <= made_from_others | held_in_parts | never_set_here


@given(st.binary(max_size=80))
def test_bytes_that_are_no_image_are_one_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        image.decoded(data, lease_ms=1)


@given(st.data())
def test_a_damaged_image_is_refused_or_another_canonical_one(data: st.DataObject) -> None:
    image_bytes = bytearray(image.encoded(known_memory()))
    place = data.draw(st.integers(0, len(image_bytes) - 1))
    image_bytes[place] = data.draw(st.integers(0, 255))
    try:
        memory = image.decoded(bytes(image_bytes), lease_ms=1)
    except ProtocolError:
        return
    assert image.encoded(memory) == bytes(image_bytes)


def test_a_reader_goes_past_records_that_it_does_not_know_and_counts_them() -> None:
    play = Play()
    play.do(FromWorker("w1", opening()), at(1))
    unknown = Record(1, 9999, at(9).wall_ns, None, Source("w1", 7, 99, 0), bytes(16), ("what",))
    fold = Fold()
    for position, record in enumerate([*play.log.records, unknown]):
        fold.apply(position, record)
    assert fold.unknown == 1
    assert fold.memory.state.highest_wall_ns == at(9).wall_ns
    with pytest.raises(ProtocolError, match="9999"):
        play.log.machine().recover([unknown], [])
