"""Who held it at T, asked of a real log: X, nobody, or unknown, because…"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog.store import Answer as StoredAnswer
from eventlog.store import Log
from eventlog.verify import compare_projection, verify
from tests.unit.tracker.wire import (
    ANN,
    BOB,
    OTHER_PUBLIC,
    PUBLIC,
    REFLECTOR,
    SECOND_NS,
    at,
    claim,
    counting,
    opening,
)
from tracker.audit import ALIVE, Finding, Holder, Nobody, Unknown, alive_note, holds, outages, who
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    Ending,
    HolderNamed,
    KernelStateRestored,
)
from tracker.instant import Instant
from tracker.machine import Machine
from tracker.messages import CloseSession, Durable, Heartbeat, Request, encode_request
from tracker.ownership import State
from tracker.projections import PROJECTIONS


class Life:
    """A tracker on a real log, told what happens second by second."""

    def __init__(self, path: Path) -> None:
        self.log = Log.open(path, projections=PROJECTIONS)
        self.nonces = counting()
        self.sequence = 0
        self.incarnation = 7
        self.acknowledged: int | None = None
        self.start(0, None)

    def start(self, seconds: float, alive_s: float | None) -> None:
        records = [record for entry in self.log.read() if (record := entry.record) is not None]
        latest = [(it.name, it.incarnation, it.sequence) for it in self.log.latest_answers()]
        self.machine = Machine(
            State(lease_ms=10_000),
            version="1",
            nonce=lambda: next(self.nonces),
            stored_answer=self.log.answer,
        ).recover(records, latest)
        self.machine.start(at(seconds), "boot", None if alive_s is None else at(alive_s).wall_ns)
        self.flush()

    def flush(self) -> None:
        batch = self.machine.take()
        answers = [StoredAnswer(it.worker, it.incarnation, it.sequence, it.frame) for it in batch.answers]
        self.log.append(batch.records, answers=answers)

    def say(self, seconds: float, body: Durable | Heartbeat) -> None:
        self.say_at(at(seconds), body)

    def say_at(self, now: Instant, body: Durable | Heartbeat) -> None:
        if not isinstance(body, Heartbeat):
            self.sequence += 1
        sequence = 0 if isinstance(body, Heartbeat) else self.sequence
        seen = max(0, sequence - 1) if self.acknowledged is None else self.acknowledged
        request = Request("w1", self.incarnation, sequence, seen, 0, now.wall_ns, body)
        self.machine.receive("peer", encode_request(request), now)
        self.flush()

    def pass_time(self, seconds: float) -> None:
        self.machine.pass_time(at(seconds))
        self.flush()

    def who(self, seconds: float, port: int = 7648, protocol: int = 17) -> list[Finding]:
        return who(self.log, at_ns=at(seconds).wall_ns, protocol=protocol, port=port, gateway="gw")

    def answer(self, seconds: float) -> Holder | Nobody | Unknown:
        findings = [it.answer for it in self.who(seconds) if it.service in (None, "cuseeme")]
        assert len(findings) == 1
        return findings[0]

    def held_by(self, seconds: float) -> bytes | None:
        answer = self.answer(seconds)
        assert not isinstance(answer, Unknown), answer
        return answer.holding.holder if isinstance(answer, Holder) else None

    def unknown(self, seconds: float) -> list[str]:
        answer = self.answer(seconds)
        assert isinstance(answer, Unknown), answer
        return [outage.kind for outage in answer.because]


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path / "log")
    life.say(1, opening())
    yield life
    assert verify(life.log, PROJECTIONS).clean
    assert [compare_projection(life.log, projection) for projection in PROJECTIONS] == [[]]
    life.log.close()


def withdrawn(binding: int, seconds: float, reason: Ending = Ending.IDLE) -> BindingWithdrawn:
    return BindingWithdrawn("gw", 1, binding, reason, at(seconds).wall_ns, None, 3, 400)


def test_the_holder_is_who_was_bound_and_not_yet_withdrawn(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(4, withdrawn(1, 4))
    life.say(5, claim(BOB))
    assert [life.held_by(second) for second in (1.9, 2, 3.9, 4, 4.9, 5, 100)] == [
        None,
        ANN,
        ANN,
        None,
        None,
        BOB,
        BOB,
    ]


def test_nobody_says_who_was_last(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(4, withdrawn(1, 4))
    answer = life.answer(5)
    assert isinstance(answer, Nobody)
    assert answer.last is not None
    assert (answer.last.holder, answer.last.reason) == (ANN, Ending.IDLE)
    assert life.answer(1.5) == Nobody(None)


def test_a_binding_ended_when_the_kernel_let_go_not_when_the_tracker_heard_of_it(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(9, withdrawn(1, 4))
    assert [life.held_by(second) for second in (3, 5)] == [ANN, None]


def test_a_holding_tells_all_that_was_said_of_it(life: Life) -> None:
    life.say(2, claim(ANN, mac=b"\x02\x00\x00\x00\x00\x01"))
    life.say(2.1, BindingInstalled("gw", 1, 1, at(2.05).wall_ns))
    life.say(2.2, HolderNamed("gw", 1, 1, "Ann"))
    for second in (3, 3.1, 3.2):
        life.say(second, claim(BOB))
    life.say(6, dataclasses.replace(withdrawn(1, 5.5), last_packet_ns=at(5).wall_ns))
    (holding,) = holds(life.log)
    assert (holding.mac, holding.user_name, holding.refusals) == (b"\x02\x00\x00\x00\x00\x01", "Ann", 3)
    assert (holding.destination, holding.destination_port, holding.peer) == (REFLECTOR, 7648, None)
    times = (holding.since_ns, holding.installed_ns, holding.withdrawn_ns, holding.until_ns)
    assert times == (at(2).wall_ns, at(2.05).wall_ns, at(5.5).wall_ns, at(6).wall_ns)
    assert (holding.packets, holding.octets, holding.last_packet_ns) == (3, 400, at(5).wall_ns)
    (refusal,) = life.log.query_rows("SELECT * FROM refusals")
    assert refusal["count"] == 3
    assert refusal["last_ns"] == at(3.2).wall_ns


@pytest.mark.parametrize(("port", "protocol"), [(7650, 17), (7647, 17), (7648, 132)])
def test_a_port_of_no_service_was_held_by_nobody(life: Life, port: int, protocol: int) -> None:
    life.say(2, claim(ANN))
    assert life.who(3, port, protocol) == [Finding("gw", None, None, None, Nobody(None))]


def test_a_service_counts_only_while_it_was_defined(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(5, dataclasses.replace(opening(), services=()))
    assert life.held_by(4) == ANN
    assert life.who(6) == [Finding("gw", None, None, None, Nobody(None))]


def test_a_shared_service_has_an_answer_for_each_peer(life: Life) -> None:
    life.say(2, claim(ANN, service="shared", peer=REFLECTOR))
    life.say(2, claim(BOB, service="shared", peer=OTHER_PUBLIC))
    found = {
        it.peer: it.answer.holding.holder
        for it in life.who(3)
        if it.service == "shared" and isinstance(it.answer, Holder)
    }
    assert found == {REFLECTOR: ANN, OTHER_PUBLIC: BOB}


def test_before_the_log_began_nothing_is_known(life: Life) -> None:
    assert life.unknown(-1) == ["before-log"]


def test_an_empty_log_knows_nothing(tmp_path: Path) -> None:
    with Log.open(tmp_path / "empty", projections=PROJECTIONS) as log:
        (finding,) = who(log, at_ns=5, protocol=17, port=7648)
        assert isinstance(finding.answer, Unknown)


def test_while_the_tracker_was_down_a_holder_stays_and_a_free_port_is_unknown(life: Life) -> None:
    life.start(60, 8)
    assert life.unknown(30) == ["tracker-down"]
    assert life.held_by(7.9) is None
    assert life.held_by(60) is None
    life.say(61, opening())
    life.say(62, claim(ANN, epoch=2))
    life.start(90, 70)
    answer = life.answer(80)
    assert isinstance(answer, Holder)
    assert [doubt.kind for doubt in answer.doubts] == ["tracker-down"]


def test_after_the_last_sign_of_life_of_the_tracker_nothing_is_known(life: Life) -> None:
    life.log.write_note(ALIVE, alive_note(at(8).wall_ns, 10 * SECOND_NS))
    assert life.held_by(18) is None
    assert life.unknown(18.1) == ["tracker-down"]


def test_what_became_of_a_binding_while_its_worker_was_lost_is_unknown_until_it_is_back(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(3, Heartbeat("gw", 1, 1))
    life.pass_time(20)
    assert life.unknown(10) == ["worker-lost"]
    assert life.held_by(2.5) == ANN
    life.say(30, Heartbeat("gw", 1, 2))
    # It is back and says nothing of a loss: the binding lasted.
    assert life.held_by(10) == ANN
    life.say(31, withdrawn(1, 31, Ending.LOST))
    assert life.unknown(10) == ["worker-lost"]
    assert life.held_by(30.5) == ANN
    assert life.held_by(2.5) == ANN


def test_a_packet_seen_later_dispels_the_doubt(life: Life) -> None:
    life.say(2, claim(ANN))
    life.pass_time(20)
    life.say(30, Heartbeat("gw", 1, 2))
    life.say(31, dataclasses.replace(withdrawn(1, 31, Ending.LOST), last_packet_ns=at(15).wall_ns))
    assert life.held_by(14) == ANN
    assert life.unknown(16) == ["worker-lost"]


def test_a_free_port_stays_free_while_the_worker_is_lost(life: Life) -> None:
    life.pass_time(20)
    assert life.held_by(15) is None


def test_a_stopped_worker_leaves_its_bindings_to_the_kernel(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(5, CloseSession("gw", 1))
    assert life.unknown(8) == ["worker-stopped"]
    life.say(9, opening())
    assert life.held_by(8) == ANN


def test_missed_records_make_their_time_unknown(life: Life) -> None:
    life.say(2, claim(ANN))
    life.sequence, life.acknowledged = 9, 9
    life.say(8, HolderNamed("gw", 1, 1, "x"))
    assert life.unknown(5) == ["records-missed"]
    assert life.held_by(8) == ANN


def test_a_lost_kernel_state_is_a_doubt_beside_the_holder(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(6, KernelStateRestored("gw", 1, "table", at(4).wall_ns, at(5).wall_ns))
    answer = life.answer(4.5)
    assert isinstance(answer, Holder)
    assert [(doubt.kind, doubt.detail) for doubt in answer.doubts] == [("kernel-state-lost", "table")]
    assert isinstance(after := life.answer(5), Holder)
    assert after.doubts == ()


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_times_that_the_clock_showed_twice_or_never_are_unknown(life: Life, step_s: int) -> None:
    life.say(2, claim(ANN))
    now = at(5)
    stepped = Instant(now.wall_ns + step_s * SECOND_NS, now.monotonic_ns)
    life.say_at(stepped, HolderNamed("gw", 1, 1, "x"))
    answer = life.answer(step_s / 2 + 5)
    if step_s < 0:
        assert isinstance(answer, Unknown)
        assert {it.kind for it in answer.because} == {"clock-stepped", "before-log"}
    else:
        assert isinstance(answer, Unknown)
        assert [it.kind for it in answer.because] == ["clock-stepped"]


def test_holds_narrows_by_time_holder_and_state(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(4, withdrawn(1, 4))
    life.say(5, claim(BOB))
    life.say(8, withdrawn(2, 8))
    life.say(9, claim(ANN))

    def numbers(**narrowed: object) -> list[int]:
        return [holding.binding for holding in holds(life.log, **narrowed)]  # type: ignore[arg-type]

    assert numbers() == [3, 2, 1]
    assert numbers(limit=1) == [3]
    assert numbers(holder=ANN) == [3, 1]
    assert numbers(open_only=True) == [3]
    assert numbers(at_ns=at(6).wall_ns) == [2]
    assert numbers(at_ns=at(6).wall_ns, holder=ANN) == []
    assert numbers(since_ns=at(3).wall_ns, until_ns=at(6).wall_ns) == [2, 1]
    assert numbers(since_ns=at(4.5).wall_ns, until_ns=at(8.5).wall_ns) == [2]
    assert numbers(gateway="other") == numbers(service="shared") == []
    assert [holding.public_address for holding in holds(life.log)] == [PUBLIC] * 3
    assert outages(life.log) == []


def test_a_question_is_an_index_look_up(life: Life) -> None:
    life.say(2, claim(ANN))
    statements: list[str] = []
    life.log.connection_for_checks().set_trace_callback(statements.append)
    life.who(3)
    life.log.connection_for_checks().set_trace_callback(None)
    asked = [it for it in statements if "FROM bindings" in it]
    assert asked
    for statement in asked:
        plan = " | ".join(str(row[3]) for row in life.log.query(f"EXPLAIN QUERY PLAN {statement}"))
        assert "SCAN i" not in plan, plan
        assert "SEARCH i USING" in plan, plan
