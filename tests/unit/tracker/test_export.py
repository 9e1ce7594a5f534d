"""Bindings as translations: what was held, on which ports, with its doubts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from eventlog.store import Log
from tests.unit.tracker.life import Life, stepped, withdrawn
from tests.unit.tracker.wire import ANN, BOB, PUBLIC, REFLECTOR, at, claim, opening
from tracker.events import Ending, HolderNamed, KernelStateRestored
from tracker.export import Translation, port_events, translations
from tracker.holdings import in_order
from tracker.messages import CloseSession


@pytest.fixture
def life(tmp_path: Path) -> Life:
    life = Life(tmp_path / "log")
    life.say(1, opening())
    return life


def exported(log: Log, **asked: Any) -> list[Translation]:
    return list(translations(log, **asked))


def numbers(log: Log, since: float | None, until: float | None, **asked: Any) -> list[int]:
    since_ns = None if since is None else at(since).wall_ns
    until_ns = None if until is None else at(until).wall_ns
    found = exported(log, since_ns=since_ns, until_ns=until_ns, **asked)
    return list(dict.fromkeys(it.binding for it in found))


def test_a_binding_is_a_row_for_each_range_of_ports(life: Life) -> None:
    life.say(2, claim(ANN, mac=b"\x02\0\0\0\0\x01"))
    life.say(6, withdrawn(1, 6, Ending.HANG_UP))
    found = exported(life.log)
    assert [(it.protocol, it.first_port, it.last_port) for it in found] == [(17, 7648, 7649), (6, 7648, 7649)]
    for row in found:
        assert (row.holder, row.mac, row.public_address) == (ANN, b"\x02\0\0\0\0\x01", PUBLIC)
        assert (row.since_ns, row.until_ns, row.ended_by) == (at(2).wall_ns, at(6).wall_ns, Ending.HANG_UP)
        assert (row.destination, row.destination_port, row.doubts) == (None, None, ())


def test_destinations_are_told_only_when_asked_for(life: Life) -> None:
    life.say(2, claim(ANN))
    row, _ = exported(life.log, destinations=True)
    assert (row.destination, row.destination_port) == (REFLECTOR, 7648)


def test_the_ports_are_those_that_the_service_had_then(life: Life) -> None:
    life.say(2, claim(ANN))
    changed = opening()
    services = (dataclasses.replace(changed.services[0], forward=changed.services[0].forward[:1]),)
    life.say(7, dataclasses.replace(changed, services=services))
    life.say(8, dataclasses.replace(withdrawn(1, 8), epoch=2))
    life.say(9, claim(BOB, epoch=2))
    assert [(it.binding, it.protocol) for it in exported(life.log)] == [(1, 17), (1, 6), (2, 17)]


def test_a_row_has_the_outages_of_its_time(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(4, KernelStateRestored("gw", 1, "table", at(3).wall_ns, at(4).wall_ns))
    life.say(4.5, KernelStateRestored("other", 1, "table", at(3).wall_ns, at(4).wall_ns))
    life.say(5, CloseSession("gw", 1))
    life.say(6, opening())
    life.say(7, dataclasses.replace(withdrawn(1, 7), epoch=2))
    life.say(8, claim(BOB, epoch=2))
    assert [(it.binding, it.doubts) for it in exported(life.log) if it.protocol == 6] == [
        (1, ("kernel-state-lost", "worker-stopped")),
        (2, ()),
    ]


def test_a_time_range_has_what_was_held_in_it_the_oldest_first(life: Life) -> None:
    for number, begin in enumerate((2, 10, 20, 30), 1):
        life.say(begin, claim(ANN if number % 2 else BOB))
        if number < 4:
            life.say(begin + 9, withdrawn(number, begin + 8))
    assert numbers(life.log, None, None) == [1, 2, 3, 4]
    assert numbers(life.log, 12, 14) == [2]
    assert numbers(life.log, 12, 21) == [2, 3]
    assert numbers(life.log, 18.5, 19.5) == []
    assert numbers(life.log, None, 20) == [1, 2]
    assert numbers(life.log, 50, None) == [4]
    assert numbers(life.log, 5, 25, holder=ANN) == [1, 3]
    assert numbers(life.log, 5, 25, gateway="other") == numbers(life.log, 5, 25, service="shared") == []
    assert numbers(life.log, 5, 25, gateway="gw", public_address=PUBLIC) == [1, 2, 3]


def test_after_the_clock_was_set_back_nothing_is_left_out(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say_at(stepped(5, -3600), HolderNamed("gw", 1, 1, "x"))
    life.say_at(stepped(6, -3600), withdrawn(1, -3594))
    life.say_at(stepped(7, -3600), claim(BOB))
    assert numbers(life.log, -3600, 1) == [1, 2]
    assert numbers(life.log, 1, 5) == [1, 2]


def test_however_many_there_are_all_are_told_in_order(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.holdings._AT_ONCE", 3)
    for number in range(1, 9):
        life.say(2 * number, claim(ANN))
        life.say(2 * number + 1, withdrawn(number, 2 * number + 1))
    assert [it.binding for it in in_order(life.log, {}, None, None)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_events_come_in_the_order_of_their_times_and_open_ones_have_no_end(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(3, claim(BOB, service="shared", peer=REFLECTOR))
    life.say(5, withdrawn(1, 5))
    life.say(5, claim(BOB))
    life.say(9, withdrawn(2, 9))
    events = [it for it in port_events(translations(life.log)) if it.protocol == 6]
    zero_ns = at(0).wall_ns
    told = [((it.at_ns - zero_ns) // 10**9, it.begins, it.internal, it.peer) for it in events]
    assert told == [
        (2, True, ANN, None),
        (3, True, BOB, REFLECTOR),
        (5, False, ANN, None),
        (5, True, BOB, None),
        (9, False, BOB, REFLECTOR),
    ]
