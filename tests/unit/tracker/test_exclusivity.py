"""Never two holders at once: honest histories are shown, forged ones are found, blind times are unknown."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.reading import LogReader
from eventlog.retention import archive_segment, close_segment, prune_segments, redact
from eventlog.store import Log
from tests.unit.tracker.life import Life, withdrawn
from tests.unit.tracker.wire import ANN, BOB, PUBLIC, REFLECTOR, SECOND_NS, at, claim, opening
from tracker.audit import ALIVE, alive_note
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    ClockStepped,
    Ending,
    Event,
    HolderNamed,
    KernelStateRestored,
    PortBound,
    PortRefused,
    PortUnbound,
    Resource,
    SessionOpened,
    from_record,
)
from tracker.examining import examine
from tracker.exclusivity import Examination, Verdict
from tracker.messages import CloseSession
from tracker.projections import PROJECTIONS

Timed = tuple[int, Event]
CUSEEME = Resource("gw", PUBLIC, "cuseeme", None)
WWW = Resource("gw", PUBLIC, "www", None)
END_NS = 10_000


def bound(binding: int, resource: Resource = CUSEEME, holder: bytes = ANN) -> PortBound:
    return PortBound(binding, resource, holder, None, 1, 17, 7648, REFLECTOR, 7648)


def installed(binding: int, at_ns: int) -> BindingInstalled:
    return BindingInstalled("gw", 1, binding, at_ns)


def gone(binding: int, at_ns: int) -> BindingWithdrawn:
    return BindingWithdrawn("gw", 1, binding, Ending.IDLE, at_ns, None, None, None, None)


def life_of(binding: int, since_ns: int, until_ns: int, resource: Resource = CUSEEME) -> list[Timed]:
    return [
        (since_ns, bound(binding, resource, bytes([10, 0, 0, binding % 250]))),
        (since_ns, installed(binding, since_ns)),
        (until_ns, gone(binding, until_ns)),
        (until_ns, PortUnbound(binding, Ending.IDLE)),
    ]


def verdict(story: Iterable[Timed], since_ns: int = 0, until_ns: int = END_NS) -> Verdict:
    examination = Examination(since_ns, until_ns)
    for position, (wall_ns, event) in enumerate(story):
        examination.take(position, wall_ns, event)
    return examination.verdict(())


def pairs(found: Verdict) -> list[tuple[int, int]]:
    return [(it.first, it.second) for it in found.overlaps]


def told(lives: Iterable[Sequence[Timed]]) -> list[Timed]:
    """As the log has it: in the order of the times; what comes at the same time in the given order."""
    return sorted(itertools.chain.from_iterable(lives), key=lambda timed: timed[0])


def position_of(story: Sequence[Timed], shape: type[Event], binding: int) -> int:
    return next(
        number
        for number, (_, event) in enumerate(story)
        if isinstance(event, shape) and getattr(event, "binding", None) == binding
    )


@st.composite
def honest(draw: st.DrawFn, least: int = 0) -> list[Timed]:
    """Bindings one after the other on each of two resources, told as they happen."""
    numbers = itertools.count(1)
    lives: list[list[Timed]] = []
    for resource in (CUSEEME, WWW):
        now_ns = 0
        for _ in range(draw(st.integers(least, 6))):
            steps = draw(st.tuples(*[st.integers(shortest, 50) for shortest in (0, 0, 1, 0)]))
            bound_ns, came_ns, left_ns, unbound_ns = list(itertools.accumulate(steps, initial=now_ns))[1:]
            binding = next(numbers)
            lives.append(
                [
                    (bound_ns, bound(binding, resource)),
                    (came_ns, installed(binding, came_ns)),
                    (left_ns, gone(binding, left_ns)),
                    (unbound_ns, PortUnbound(binding, Ending.IDLE)),
                ]
            )
            now_ns = unbound_ns
    return told(lives)


# --- histories ----------------------------------------------------------------------------------------------


@given(honest())
def test_an_honest_history_is_shown(story: list[Timed]) -> None:
    found = verdict(story)
    assert found.shown
    bindings = [event.resource for _, event in story if isinstance(event, PortBound)]
    assert found.bindings == len(bindings)
    assert found.resources == len(set(bindings))
    assert found.handovers == len(bindings) - found.resources


@given(honest(least=2), st.integers(1, 40), st.data())
def test_a_withdrawal_whose_time_is_put_behind_the_next_installation_is_found(
    story: list[Timed], late_ns: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, sum(isinstance(event, PortBound) for _, event in story) - 1))
    if bound_resource(story, first) != bound_resource(story, first + 1):
        first -= 1
    came = story[position_of(story, BindingInstalled, first + 1)][1]
    assert isinstance(came, BindingInstalled)
    at_position = position_of(story, BindingWithdrawn, first)
    story[at_position] = (story[at_position][0], gone(first, came.installed_ns + late_ns))
    found = verdict(story)
    assert (first, first + 1) in pairs(found)
    assert all(overlap.by == "times" for overlap in found.overlaps)


@given(honest(least=2), st.data())
def test_a_withdrawal_that_is_moved_behind_the_next_installation_is_found(
    story: list[Timed], data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, sum(isinstance(event, PortBound) for _, event in story) - 1))
    if bound_resource(story, first) != bound_resource(story, first + 1):
        first -= 1
    moved = story.pop(position_of(story, BindingWithdrawn, first))
    story.insert(position_of(story, BindingInstalled, first + 1) + 1, moved)
    found = verdict(story)
    assert pairs(found) == [(first, first + 1)]
    assert found.overlaps[0].by == "order"


@given(honest(least=2), st.data())
def test_a_withdrawal_that_is_missing_makes_unknown_what_comes_after(
    story: list[Timed], data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, sum(isinstance(event, PortBound) for _, event in story)))
    del story[position_of(story, BindingWithdrawn, first)]
    found = verdict(story)
    assert [(it.because, it.resource) for it in found.unobserved] == [
        ("never-seen-gone", bound_resource(story, first))
    ]
    assert found.overlaps == []


def bound_resource(story: Sequence[Timed], binding: int) -> Resource:
    event = story[position_of(story, PortBound, binding)][1]
    assert isinstance(event, PortBound)
    return event.resource


SPANS = st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from([CUSEEME, WWW]))


@given(st.lists(SPANS, max_size=9))
def test_of_any_history_exactly_the_overlapping_pairs_are_found(
    spans: list[tuple[int, int, Resource]],
) -> None:
    lives = {
        number: (since, since + length, resource)
        for number, (since, length, resource) in enumerate(sorted(spans, key=lambda it: it[:2]), 1)
    }
    # What ends at a time is told before what begins at it.
    ends = [timed for number, it in lives.items() for timed in life_of(number, *it)[2:]]
    begins = [timed for number, it in lives.items() for timed in life_of(number, *it)[:2]]
    found = verdict(told([ends, begins]))
    truth = {
        (one, other)
        for one, other in itertools.combinations(lives, 2)
        if lives[one][2] == lives[other][2]
        and max(lives[one][0], lives[other][0]) < min(lives[one][1], lives[other][1])
    }
    assert {(min(pair), max(pair)) for pair in pairs(found)} == truth
    assert len(found.overlaps) == len(truth)
    assert all(overlap.by == "times and order" for overlap in found.overlaps)
    for overlap in found.overlaps:
        one, other = lives[overlap.first], lives[overlap.second]
        assert (overlap.since_ns, overlap.until_ns) == (max(one[0], other[0]), min(one[1], other[1]))


# --- single facts -------------------------------------------------------------------------------------------


def test_an_overlap_names_both_holders_and_the_four_reports() -> None:
    story = told([life_of(1, 10, 30), life_of(2, 20, 40)])
    (overlap,) = verdict(story).overlaps
    assert (overlap.first_holder, overlap.second_holder) == (b"\x0a\0\0\x01", b"\x0a\0\0\x02")
    assert (overlap.resource, overlap.since_ns, overlap.until_ns) == (CUSEEME, 20, 30)
    assert [type(story[at][1]) for at in overlap.positions] == [BindingInstalled] * 2 + [BindingWithdrawn] * 2


@pytest.mark.parametrize(
    ("since_ns", "until_ns", "found"), [(0, 20, 0), (0, 21, 1), (25, 26, 1), (29, 99, 1), (30, 99, 0)]
)
def test_only_what_lies_in_the_time_asked_for_counts(since_ns: int, until_ns: int, found: int) -> None:
    story = told([life_of(1, 10, 30), life_of(2, 20, 40)])
    assert len(verdict(story, since_ns, until_ns).overlaps) == found


def test_one_that_is_still_there_overlaps_with_what_comes() -> None:
    story = [*told([life_of(1, 10, 30), life_of(2, 20, 40)])]
    del story[position_of(story, BindingWithdrawn, 2)], story[-1]
    (overlap,) = verdict(story).overlaps
    assert (overlap.since_ns, overlap.until_ns) == (20, 30)


def test_the_shortest_time_between_two_bindings_is_told() -> None:
    found = verdict([*life_of(1, 10, 20), *life_of(2, 27, 30), *life_of(3, 33, 40)])
    assert (found.handovers, found.shortest_gap_ns) == (2, 3)


def test_where_the_clock_was_set_back_the_order_decides() -> None:
    story = [
        *life_of(1, 1000, 2000),
        (500, ClockStepped(2000, 500)),
        *life_of(2, 600, 700),
        *life_of(3, 710, 720),
    ]
    found = verdict(story)
    assert found.shown
    assert (found.handovers, found.shortest_gap_ns) == (2, 10)
    without = [timed for timed in story if not isinstance(timed[1], ClockStepped)]
    assert [it.because for it in verdict(without).unobserved] == ["times-contradict-order"] * 2


def test_what_was_granted_and_never_seen_in_the_kernel_is_unknown_while_it_lasts() -> None:
    assert [it.because for it in verdict([(10, bound(1))]).unobserved] == ["never-seen-there"]
    # Given back late: it never was there, and nobody else was.
    assert verdict([(10, bound(1)), (20, gone(1, 20)), (20, PortUnbound(1, Ending.LATE))]).shown


def test_a_binding_that_nobody_saw_go_is_unknown_until_a_session_clears_the_kernel() -> None:
    story = [*life_of(1, 10, 20)[:2], (20, PortUnbound(1, Ending.REVOKE))]
    swept = (50, SessionOpened("gw", 2, "w1", "host", (PUBLIC,), 10_000, fence=False))
    (gap,) = verdict([*story, swept, *life_of(2, 60, 70)]).unobserved
    assert (gap.because, gap.since_ns, gap.until_ns) == ("never-seen-gone", 20, 50)
    (gap,) = verdict(story).unobserved
    assert (gap.since_ns, gap.until_ns) == (20, END_NS)


def test_what_was_installed_for_nobody_known_is_unknown() -> None:
    found = verdict(life_of(1, 10, 20)[1:])
    assert [(it.because, it.since_ns, it.until_ns) for it in found.unobserved] == [
        ("holder-not-known", 10, 20)
    ]


def test_records_that_are_gone_are_a_time_of_which_nothing_is_known() -> None:
    examination = Examination(0, 100)
    examination.take(0, 10, bound(1))
    examination.take_unreadable(1, 10, "pruned")
    examination.take(7, 60, HolderNamed("gw", 1, 1, "x"))
    gaps = examination.verdict(()).unobserved
    assert ("records-gone", 10, 60) in [(it.because, it.since_ns, it.until_ns) for it in gaps]


# --- a log --------------------------------------------------------------------------------------------------


@pytest.fixture
def life(tmp_path: Path) -> Life:
    life = Life(tmp_path / "log")
    life.say(1, opening())
    return life


def seen(life: Life, since: float, until: float) -> list[tuple[str, float, float]]:
    """What nobody observed there, in seconds."""
    zero_ns = at(0).wall_ns
    found = examine(life.log, at(since).wall_ns, at(until).wall_ns)
    assert found.overlaps == []
    return [
        (it.because, ((it.since_ns or 0) - zero_ns) / SECOND_NS, ((it.until_ns or 0) - zero_ns) / SECOND_NS)
        for it in found.unobserved
    ]


def hold(life: Life, number: int, since: float, until: float, holder: bytes = ANN) -> None:
    life.say(since, claim(holder))
    life.say(since + 0.1, BindingInstalled("gw", 1, number, at(since + 0.1).wall_ns))
    life.say(until, withdrawn(number, until))


def test_a_log_of_workers_who_looked_all_the_time_is_shown(life: Life) -> None:
    hold(life, 1, 2, 5)
    hold(life, 2, 5, 8, BOB)
    found = examine(life.log, at(1).wall_ns, at(10).wall_ns)
    assert found.shown
    assert (found.bindings, found.resources, found.handovers) == (2, 1, 1)
    assert found.shortest_gap_ns == SECOND_NS // 10


def test_the_times_in_which_no_worker_looked_are_unknown(life: Life) -> None:
    hold(life, 1, 2, 4)
    life.say(5, CloseSession("gw", 1))
    life.say(9, opening())
    life.beat(10, 30, 2)
    life.say(31, opening())
    life.beat(32, 50, 3)
    life.pass_time(70)
    life.say(80, opening())
    assert seen(life, 1, 81) == [
        ("worker-stopped", 5, 9),
        ("worker-restarted", 21, 31),
        ("worker-lost", 47, 80),
    ]
    assert seen(life, 10, 20) == []


def test_a_hole_in_the_kernel_or_in_the_reports_is_unknown(life: Life) -> None:
    life.say(4, KernelStateRestored("gw", 1, "table", at(2).wall_ns, at(3).wall_ns))
    life.sequence, life.acknowledged = 9, 9
    life.say(8, KernelStateRestored("gw", 1, "queue rules", at(7).wall_ns, at(8).wall_ns))
    assert seen(life, 1, 9) == [("kernel-state-lost", 2, 3), ("records-missed", 4, 8)]


def test_before_the_log_and_after_the_last_sign_of_life_nothing_is_known(life: Life) -> None:
    life.log.append([], notes={ALIVE: alive_note(at(8).wall_ns, 2 * SECOND_NS)})
    assert seen(life, -5, 9) == [("before-log", -5, 0)]
    assert seen(life, 1, 20) == [("tracker-down", 8, 20)]


def test_what_was_reported_late_is_told_of_the_time_it_happened(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(2.1, BindingInstalled("gw", 1, 1, at(2.1).wall_ns))
    life.start(60, 8)
    life.say(61, withdrawn(1, 30))
    assert seen(life, 1, 62) == []
    assert examine(life.log, at(31).wall_ns, at(60).wall_ns).bindings == 0


def test_a_forged_log_is_found_though_it_agrees_with_itself(tmp_path: Path) -> None:
    honest_log = Life(tmp_path / "honest")
    honest_log.say(1, opening())
    hold(honest_log, 1, 2, 5)
    hold(honest_log, 2, 5, 8, BOB)
    records = [record for entry in honest_log.log.read() if (record := entry.record) is not None]
    late = next(number for number, record in enumerate(records) if record.type == 41)
    records[late] = dataclasses.replace(records[late], reported_ns=at(6).wall_ns)
    with Log.open(tmp_path / "forged", projections=PROJECTIONS) as log:
        log.append(records)
        (overlap,) = examine(log, at(1).wall_ns, at(10).wall_ns).overlaps
    assert (overlap.first_holder, overlap.second_holder, overlap.by) == (ANN, BOB, "times")
    assert (overlap.since_ns, overlap.until_ns) == (at(5.1).wall_ns, at(6).wall_ns)


def test_progress_ends_at_the_end(life: Life) -> None:
    told_of: list[tuple[int, int]] = []
    examine(life.log, at(1).wall_ns, at(2).wall_ns, progress=lambda done, size: told_of.append((done, size)))
    assert told_of[-1] == (life.log.size, life.log.size)


def test_what_is_remembered_is_the_present_however_long_the_history() -> None:
    examination = Examination(0, END_NS)
    for number in range(1, 2000):
        for at_position, (wall_ns, event) in enumerate(life_of(number, 2 * number, 2 * number + 1)):
            examination.take(4 * number + at_position, wall_ns, event)
    assert sum(len(kept) for kept in examination._kept.values()) + len(examination._present) <= 2
    assert examination.verdict(()).handovers == 1998


# --- records that are gone ----------------------------------------------------------------------------------


def position_in(life: Life, shape: type[Event], number: int = 0) -> int:
    """Where the log has the event of this type, counted from 0."""
    places = [
        entry.position
        for entry in life.log.read()
        if entry.record is not None and isinstance(from_record(entry.record), shape)
    ]
    return places[number]


def take_out(life: Life, position: int) -> None:
    redact(life.log, position, "asked for", at(100).wall_ns, projections=PROJECTIONS)


def test_a_name_and_a_refusal_that_were_redacted_leave_nothing_in_doubt(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(2.1, BindingInstalled("gw", 1, 1, at(2.1).wall_ns))
    life.say(3, HolderNamed("gw", 1, 1, "Ann"))
    life.say(4, claim(BOB))
    life.say(6, withdrawn(1, 6))
    for shape in (HolderNamed, PortRefused):
        take_out(life, position_in(life, shape))
        assert seen(life, 1, 7) == []
    close_segment(life.log, life.log.size, at(100).wall_ns)
    archive_segment(life.log, 0, at(100).wall_ns)
    assert seen(life, 1, 7) == []


def test_a_type_that_stands_beside_a_redacted_record_is_not_believed(life: Life) -> None:
    hold(life, 1, 2, 5)
    take_out(life, position_in(life, BindingInstalled))
    life.log.connection_for_checks().execute("DROP TRIGGER log_records_never_change")
    life.log.connection_for_checks().execute("UPDATE log_records SET type = 42 WHERE bytes IS NULL")
    assert "records-gone" in [because for because, _, _ in seen(life, 1, 6)]


@pytest.mark.parametrize("archived", [False, True])
def test_a_binding_of_whose_coming_no_record_speaks_any_more_is_unknown_as_long_as_it_lasted(
    life: Life, archived: bool
) -> None:
    life.say(2, claim(ANN))
    life.say(2.1, BindingInstalled("gw", 1, 1, at(2.1).wall_ns))
    end = life.log.size
    life.say(5, claim(BOB, service="shared", peer=REFLECTOR))
    life.say(8, withdrawn(2, 8))
    life.say(9, withdrawn(1, 9))
    close_segment(life.log, end, at(100).wall_ns)
    if archived:
        archive_segment(life.log, 0, at(100).wall_ns)
        assert seen(life, 6, 10) == []
    prune_segments(life.log, [0], "too old", at(100).wall_ns, projections=PROJECTIONS)
    assert seen(life, 6, 10) == [("records-gone", 6, 9)]


def test_one_that_goes_on_makes_unknown_all_that_comes(life: Life) -> None:
    life.say(2, claim(ANN))
    life.say(2.1, BindingInstalled("gw", 1, 1, at(2.1).wall_ns))
    close_segment(life.log, life.log.size, at(100).wall_ns)
    prune_segments(life.log, [0], "too old", at(100).wall_ns, projections=PROJECTIONS)
    life.say(101, opening())
    assert ("records-gone", 105, 110) in seen(life, 105, 110)


def test_a_binding_whose_end_is_gone_does_not_last_for_ever(life: Life) -> None:
    hold(life, 1, 2, 5)
    for position in range(position_in(life, BindingWithdrawn), life.log.size):
        take_out(life, position)
    life.say(101, opening())
    hold_again(life, 2, 102, 105)
    unknown = seen(life, 1, 110)
    assert {because for because, _, _ in unknown} <= {"records-gone", "worker-lost", "worker-restarted"}
    assert [until for because, _, until in unknown if because == "records-gone"] == [101]


def hold_again(life: Life, number: int, since: float, until: float) -> None:
    life.say(since, claim(BOB, epoch=2))
    life.say(since + 0.1, BindingInstalled("gw", 2, number, at(since + 0.1).wall_ns))
    life.say(until, dataclasses.replace(withdrawn(number, until), epoch=2))


def test_of_an_archive_that_is_not_there_nothing_is_shown(life: Life) -> None:
    hold(life, 1, 2, 5)
    hold(life, 2, 6, 9)
    close_segment(life.log, position_in(life, PortBound, 1), at(100).wall_ns)
    archive = archive_segment(life.log, 0, at(100).wall_ns)
    assert seen(life, 1, 10) == []
    archive.rename(archive.with_suffix(".elsewhere"))
    with LogReader.open(life.log.path) as reader:
        found = examine(reader, at(1).wall_ns, at(10).wall_ns)
    assert [it.because for it in found.unobserved] == ["records-gone"]
    assert "No such file" in found.unobserved[0].detail
