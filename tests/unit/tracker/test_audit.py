"""Who held it at T, asked of a real log: X, nobody, or unknown, because…"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventlog.store import Log
from eventlog.verify import compare_projection, verify
from tests.unit.tracker.life import Life, stepped, withdrawn
from tests.unit.tracker.wire import (
    ANN,
    BOB,
    OTHER_PUBLIC,
    PUBLIC,
    REFLECTOR,
    SECOND_NS,
    at,
    claim,
    opening,
)
from tracker.audit import ALIVE, Finding, Holder, Nobody, Unknown, alive_note, holds, outages, who
from tracker.events import (
    BindingInstalled,
    Ending,
    HolderNamed,
    KernelStateRestored,
    PublicAddressChanged,
)
from tracker.instant import Instant
from tracker.messages import CloseSession, Heartbeat
from tracker.projections import PROJECTIONS


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path / "log")
    life.say(1, opening())
    yield life
    assert verify(life.log, PROJECTIONS).clean
    assert [compare_projection(life.log, projection) for projection in PROJECTIONS] == [[]]
    life.log.close()


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
    life.log.append([], notes={ALIVE: alive_note(at(8).wall_ns, 10 * SECOND_NS)})
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


@pytest.mark.parametrize(
    ("what", "held", "free"),
    [("table", Unknown, Unknown), ("elements", Unknown, Nobody), ("queue rules", Holder, Nobody)],
)
def test_while_the_kernel_state_was_lost_it_depends_on_what_was_left(
    life: Life, what: str, held: type, free: type
) -> None:
    life.say(6, KernelStateRestored("gw", 1, what, at(4).wall_ns, at(5).wall_ns))
    assert type(life.answer(4.5)) is free
    life.say(7, claim(ANN))
    life.say(10, KernelStateRestored("gw", 1, what, at(8).wall_ns, at(9).wall_ns))
    answer = life.answer(8.5)
    assert type(answer) is held
    assert not isinstance(answer, Nobody)
    told = answer.doubts if isinstance(answer, Holder) else answer.because
    assert [(outage.kind, outage.detail) for outage in told] == [("kernel-state-lost", what)]
    assert isinstance(after := life.answer(9), Holder)
    assert after.doubts == ()


def test_a_time_that_the_clock_never_showed_is_unknown(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say_at(stepped(5, 3600), HolderNamed("gw", 1, 1, "x"))
    assert life.unknown(1800) == ["clock-stepped"]
    assert life.held_by(4) == ANN
    assert life.held_by(3606) == ANN
    assert [life.who(1800)[0].service, life.who(4)[0].service] == [None, "cuseeme"]


def test_a_time_that_the_clock_showed_twice_has_an_answer_if_it_is_the_same_both_times(life: Life) -> None:
    life.say(2, claim(ANN))
    life.beat(5, 100)
    life.say_at(stepped(100, -60), HolderNamed("gw", 1, 1, "x"))  # it is 40 s again
    life.beat(100, 120, step_s=-60)
    life.say_at(stepped(120, -60), withdrawn(1, 60))
    assert [life.held_by(second) for second in (30, 50, 110)] == [ANN, ANN, None]
    assert life.unknown(99) == ["clock-stepped"]
    twice, once = life.answer(50), life.answer(30)
    assert isinstance(twice, Holder)
    assert isinstance(once, Holder)
    assert [[doubt.kind for doubt in it.doubts] for it in (once, twice)] == [[], ["clock-stepped"]]
    assert [it.binding for it in holds(life.log, at_ns=at(99).wall_ns)] == [1]


def test_what_was_bound_before_the_clock_was_set_back_is_found_by_its_place_in_the_log(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(7, withdrawn(1, 7))
    life.say_at(stepped(9, -3600), claim(BOB))
    # By its time Bob's binding is the earlier one, and for that clock Ann's had ended before it began.
    assert life.held_by(-3580) == BOB
    assert life.unknown(3) == ["clock-stepped"]
    assert life.unknown(-3592) == ["before-log"]


def test_a_boot_in_1970_makes_nothing_unknown_that_was_known(life: Life) -> None:
    life.say(2, claim(ANN))
    life.beat(5, 70)
    life.say(50, withdrawn(1, 50))
    start = Instant(30 * SECOND_NS, 10 * SECOND_NS)
    life.start_at(start, at(70).wall_ns)
    now = Instant(at(500).wall_ns, 90 * SECOND_NS)  # it has heard the time
    life.say_at(now, opening())
    assert [life.held_by(second) for second in (3, 49, 55, 69)] == [ANN, ANN, None, None]
    assert life.unknown(200) == ["clock-stepped"]
    assert life.held_by(501) is None


def test_a_time_by_the_workers_clock_that_cannot_be_is_not_believed(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(9, dataclasses.replace(withdrawn(1, 9), withdrawn_ns=5))
    assert [life.held_by(second) for second in (3, 8.9, 9)] == [ANN, ANN, None]


def test_a_worker_that_began_anew_was_perhaps_away_for_its_lease(life: Life) -> None:
    life.say(2, claim(ANN))
    life.beat(5, 40)
    life.say(40, opening())
    life.say(41, dataclasses.replace(withdrawn(1, 41, Ending.LOST), epoch=2))
    assert life.unknown(35) == ["worker-restarted"]
    assert life.held_by(29) == ANN


def test_what_ran_idle_while_the_worker_was_away_had_ended_nobody_knows_when(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(5, CloseSession("gw", 1))
    life.say(900, opening())
    life.say(901, dataclasses.replace(withdrawn(1, 901, Ending.IDLE), epoch=2))
    assert life.unknown(400) == ["worker-stopped"]
    assert life.held_by(4) == ANN


def test_what_ran_idle_long_after_the_worker_was_back_had_lasted_through(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(5, CloseSession("gw", 1))
    life.say(90, opening())
    life.say(350, dataclasses.replace(withdrawn(1, 350, Ending.IDLE), epoch=2))
    assert life.held_by(60) == ANN


def test_after_the_tracker_fell_silent_the_end_of_a_binding_may_wait_in_an_outbox(life: Life) -> None:
    life.say(2, claim(ANN))
    life.log.append([], notes={ALIVE: alive_note(at(8).wall_ns, 10 * SECOND_NS)})
    assert life.held_by(17) == ANN
    assert life.unknown(19) == ["tracker-down"]
    life.start(30, 8)
    life.log.append([], notes={ALIVE: alive_note(at(30).wall_ns, 10 * SECOND_NS)})
    life.say(31, Heartbeat("gw", 1, 1))
    answer = life.answer(19)
    assert isinstance(answer, Holder)
    assert [doubt.kind for doubt in answer.doubts] == ["tracker-down"]


def test_who_may_be_asked_by_service_alone(life: Life) -> None:
    life.say(2, claim(ANN))
    asked = who(life.log, at_ns=at(3).wall_ns, service="cuseeme")
    assert [type(finding.answer) for finding in asked] == [Holder]
    everything = who(life.log, at_ns=at(3).wall_ns)
    assert [finding.service for finding in everything] == ["cuseeme", "shared"]
    (other,) = who(
        life.log, at_ns=at(3).wall_ns, service="cuseeme", gateway="gw", public_address=OTHER_PUBLIC
    )
    assert other == Finding("gw", OTHER_PUBLIC, "cuseeme", None, Nobody(None))


def test_an_address_is_looked_for_at_the_gateways_that_ever_had_it(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(2, dataclasses.replace(opening("elsewhere"), public_addresses=(OTHER_PUBLIC,)))

    def gateways(address: bytes) -> list[str | None]:
        found = who(life.log, at_ns=at(4).wall_ns, service="cuseeme", public_address=address)
        return [finding.gateway for finding in found]

    assert gateways(PUBLIC) == ["gw"]
    assert gateways(OTHER_PUBLIC) == ["elsewhere"]
    assert gateways(bytes(4)) == [None]
    life.say(3, PublicAddressChanged("gw", 1, PUBLIC, OTHER_PUBLIC, at(3).wall_ns))
    assert gateways(OTHER_PUBLIC) == ["elsewhere", "gw"]


def test_holds_narrows_by_time_holder_and_state(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(4, withdrawn(1, 4))
    life.say(5, claim(BOB))
    life.say(8, withdrawn(2, 8))
    life.say(9, claim(ANN))

    def numbers(**narrowed: Any) -> list[int]:
        return [holding.binding for holding in holds(life.log, **narrowed)]

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


def test_holds_of_a_time_range_has_what_began_ended_or_lasted_through_it(life: Life) -> None:
    for number, begin in enumerate((2, 10, 20, 30), 1):
        life.say(begin, claim(ANN if number % 2 else BOB))
        if number < 4:
            life.say(begin + 9, withdrawn(number, begin + 8))

    def numbers(since: float | None, until: float | None, limit: int | None = None) -> list[int]:
        since_ns = None if since is None else at(since).wall_ns
        until_ns = None if until is None else at(until).wall_ns
        found = holds(life.log, since_ns=since_ns, until_ns=until_ns, limit=limit)
        return [holding.binding for holding in found]

    assert numbers(None, None, 2) == [4, 3]
    assert numbers(12, 14) == [2]
    assert numbers(12, 21) == [3, 2]
    assert numbers(9.5, 11) == [2, 1]
    assert numbers(18.5, 19.5) == []  # withdrawn from the kernel, and the tracker not yet told
    assert numbers(17, None, 2) == [4, 3]
    assert numbers(None, 20) == [2, 1]
    assert numbers(50, 60) == [4]


def test_a_question_is_an_index_look_up(life: Life) -> None:
    life.say(2, claim(ANN))
    statements: list[str] = []
    life.log.connection_for_checks().set_trace_callback(statements.append)
    life.who(3)
    life.log.connection_for_checks().set_trace_callback(None)
    asked = [it for it in statements if it.startswith("SELECT") and "clock_steps" not in it]
    assert len([it for it in asked if "FROM bindings" in it or "FROM outages" in it]) > 1
    for statement in asked:
        plan = " | ".join(str(row[3]) for row in life.log.query(f"EXPLAIN QUERY PLAN {statement}"))
        for table in ("bindings", "i", "b", "outages", "sessions", "log_records"):
            assert f"SCAN {table}" not in plan, plan
