"""Every record that made a binding what it was, and no other."""

import dataclasses
from pathlib import Path

import pytest

from eventlog.retention import archive_segment, close_segment, prune_segments, redact
from tests.unit.tracker.life import Life, withdrawn
from tests.unit.tracker.wire import ANN, BOB, OTHER_PUBLIC, PUBLIC, REFLECTOR, at, claim, opening
from tracker.events import (
    BindingInstalled,
    Ending,
    HolderNamed,
    KernelStateRestored,
    PublicAddressChanged,
    ServiceDefined,
)
from tracker.explanation import Explanation, Role, explain
from tracker.projections import PROJECTIONS


@pytest.fixture
def life(tmp_path: Path) -> Life:
    life = Life(tmp_path / "log")
    life.say(1, opening())
    return life


def explained(life: Life, binding: int) -> Explanation:
    found = explain(life.log, binding)
    assert found is not None
    return found


def steps(life: Life, binding: int) -> list[tuple[str, str]]:
    """Each record's event and what it has to do with the binding."""
    return [(type(step.event).__name__, step.role.name) for step in explained(life, binding).steps]


def test_a_whole_life_is_told_record_by_record(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(2.1, BindingInstalled("gw", 1, 1, at(2.1).wall_ns))
    life.say(2.2, HolderNamed("gw", 1, 1, "Ann"))
    life.say(3, claim(BOB))
    life.say(4, claim(REFLECTOR))
    life.say(5, HolderNamed("gw", 1, 1, "Anna"))
    life.say(6, withdrawn(1, 6))
    roles = [role for _, role in steps(life, 1)]
    assert roles[2:] == [
        "BOUND",
        "INSTALLED",
        "NAMED",
        "REFUSED",
        "REFUSED",
        "NAMED",
        "WITHDRAWN",
        "COUNTED",
        "COUNTED",
        "UNBOUND",
    ]
    assert sorted(roles[:2]) == ["DEFINED", "SESSION"]


def test_the_positions_are_those_of_the_log(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(6, withdrawn(1, 6))
    for step in explained(life, 1).steps:
        assert step.record == life.log.entry(step.position).record
    positions = [step.position for step in explained(life, 1).steps]
    assert positions == sorted(positions)


def test_what_is_said_of_others_is_not_told(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(2, claim(BOB, service="shared", peer=REFLECTOR))
    life.say(3, BindingInstalled("gw", 1, 2, at(3).wall_ns))
    life.say(3, BindingInstalled("gw", 1, 1, at(3).wall_ns))
    life.say(4, HolderNamed("gw", 1, 2, "Bob"))
    life.say(5, withdrawn(2, 5))
    life.say(6, withdrawn(1, 6))
    for step in explained(life, 1).steps:
        assert getattr(step.event, "binding", 1) == 1
    assert len(steps(life, 1)) == 6


def test_it_begins_with_the_end_of_the_one_before_and_the_service_as_it_was(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(6, withdrawn(1, 6))
    changed = opening()
    services = (dataclasses.replace(changed.services[0], idle_ms=7), changed.services[1])
    life.say(7, dataclasses.replace(changed, services=services))
    life.say(8, claim(BOB, epoch=2))
    told = explained(life, 2).steps
    assert [(step.role, step.position < told[-1].position) for step in told] == [
        (Role.FREED, True),
        (Role.SESSION, True),
        (Role.DEFINED, True),
        (Role.BOUND, False),
    ]
    (defined,) = [step.event for step in told if isinstance(step.event, ServiceDefined)]
    assert defined.service.idle_ms == 7


def test_outages_of_its_time_are_told_and_no_others(life: Life) -> None:
    life.say(2, KernelStateRestored("gw", 1, "table", at(1.5).wall_ns, at(2).wall_ns))
    life.say(3, claim(ANN))
    life.say(6, KernelStateRestored("gw", 1, "elements", at(4).wall_ns, at(5).wall_ns))
    life.say(7, KernelStateRestored("other", 1, "elements", at(4).wall_ns, at(5).wall_ns))
    life.say(8, withdrawn(1, 8))
    found = explained(life, 1)
    assert [doubt.detail for doubt in found.doubts] == ["elements"]
    (step,) = [step for step in found.steps if step.role is Role.OUTAGE]
    assert step.event == KernelStateRestored("gw", 1, "elements", at(4).wall_ns, at(5).wall_ns)


def test_an_address_that_went_is_named_as_the_reason(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(5, withdrawn(1, 5, Ending.ADDRESS_CHANGED))
    life.say(5, PublicAddressChanged("gw", 1, PUBLIC, OTHER_PUBLIC, at(5).wall_ns))
    assert steps(life, 1)[-1] == ("PublicAddressChanged", "ADDRESS")


def test_a_binding_that_never_was_has_no_explanation(life: Life) -> None:
    assert explain(life.log, 1) is None


def test_the_tables_know_the_places_and_nothing_is_searched(life: Life) -> None:
    life.say(2, claim(ANN))
    for second in range(3, 103):
        life.say(second, HolderNamed("gw", 1, 1, str(second)))
        life.beat(second, second + 1)
    life.say(104, withdrawn(1, 104))
    life.say(105, claim(BOB))
    statements: list[str] = []
    life.log.connection_for_checks().set_trace_callback(statements.append)
    assert len(explained(life, 2).steps) == 4
    life.log.connection_for_checks().set_trace_callback(None)
    assert len([it for it in statements if "log_records" in it]) < 30


def whole_life(life: Life) -> None:
    """Bound, installed, named, refused to another, named again, withdrawn; and Bob's on another service."""
    life.say(2, claim(ANN))
    life.say(2.1, BindingInstalled("gw", 1, 1, at(2.1).wall_ns))
    life.say(2.2, HolderNamed("gw", 1, 1, "Ann"))
    life.say(3, claim(BOB))
    life.say(4, HolderNamed("gw", 1, 1, "Anna"))
    life.say(5, claim(BOB, service="shared", peer=REFLECTOR))
    life.say(6, withdrawn(1, 6))


def places(life: Life) -> list[tuple[int, Role]]:
    return [(step.position, step.role) for step in explained(life, 1).steps]


def test_what_is_redacted_is_named_by_what_the_tables_know_of_it(life: Life) -> None:
    whole_life(life)
    before = places(life)
    for position, role in before:
        if role not in (Role.DEFINED, Role.SESSION):
            redact(life.log, position, "asked for", at(9).wall_ns, projections=PROJECTIONS)
    again = max(position for position, role in before if role is Role.NAMED)
    less_known = {Role.WITHDRAWN: Role.PERHAPS_END, Role.COUNTED: Role.PERHAPS_END}
    expected = [
        (position, Role.MENTIONED if position == again else less_known.get(role, role))
        for position, role in before
    ]
    assert places(life) == expected
    unread = [step for step in explained(life, 1).steps if step.event is None]
    assert len(unread) == 8
    assert all("redacted" in (step.why_not or "") for step in unread)


def test_an_explanation_reads_through_archives_and_says_what_was_pruned(life: Life) -> None:
    whole_life(life)
    before = explained(life, 1)
    named = next(step.position for step in before.steps if step.role is Role.NAMED)
    close_segment(life.log, named, at(9).wall_ns)
    close_segment(life.log, life.log.size, at(9).wall_ns)
    for number in (0, 1):
        archive_segment(life.log, number, at(9).wall_ns)
    assert explained(life, 1) == before
    prune_segments(life.log, [0], "too old", at(9).wall_ns, projections=PROJECTIONS)
    steps = explained(life, 1).steps
    assert [(it.position, it.role) for it in steps] == [(it.position, it.role) for it in before.steps]
    assert [it.event for it in steps if it.position >= named] == [
        it.event for it in before.steps if it.position >= named
    ]
    assert {it.event for it in steps if it.position < named} == {None}
    assert all("pruned" in (it.why_not or "") for it in steps if it.position < named)
