"""Who speaks for a gateway: sessions, leases, take-overs, with fence and without."""

import dataclasses

import pytest

from tests.unit.tracker.core import LEASE_MS, World
from tests.unit.tracker.wire import (
    ANN,
    CUSEEME,
    PER_PEER,
    PUBLIC,
    SECOND_NS,
    at,
    opening,
)
from tracker.events import (
    ServiceDefined,
    ServiceRemoved,
    SessionEnded,
    SessionEnding,
    SessionOpened,
    SessionRefused,
    TrackerStarted,
    WorkerLost,
    WorkerReturned,
)
from tracker.messages import (
    Acknowledged,
    CloseSession,
    Heartbeat,
    HeartbeatAcknowledged,
    OpenSession,
    SessionDenied,
    SessionGranted,
    SessionOver,
)
from tracker.ownership import (
    PassTime,
    Start,
    WasAway,
    next_deadline,
)

# ---- sessions --------------------------------------------------------------------------------------------


def test_a_free_gateway_is_granted_with_the_first_epoch_and_its_services_are_recorded(world: World) -> None:
    events, reply = world.say(opening())
    assert events == (
        SessionOpened("gw", 1, "w1", "host boot", (PUBLIC,), LEASE_MS, fence=False),
        ServiceDefined("gw", CUSEEME),
        ServiceDefined("gw", PER_PEER),
    )
    assert reply == SessionGranted("gw", 1, LEASE_MS, at(0).wall_ns, 1, 0, ())


def test_the_same_worker_is_granted_a_higher_epoch_at_once_and_gets_its_bindings(held: World) -> None:
    events, reply = held.say(opening(), 2)
    assert [type(event) for event in events] == [SessionEnded, SessionOpened]
    assert events[0] == SessionEnded("gw", 1, "w1", SessionEnding.REOPENED)
    assert isinstance(reply, SessionGranted)
    assert reply.epoch == 2
    assert [view.holder for view in reply.bindings] == [ANN]


def test_another_worker_is_refused_while_the_lease_runs_and_that_is_one_record(opened: World) -> None:
    events, reply = opened.say(opening(), 4, worker="w2")
    assert events == (SessionRefused("gw", 1, "w2", "host boot"),)
    assert reply == SessionDenied("gw", "w1", "host boot", 6000)
    events, reply = opened.say(opening(), 5, worker="w2")
    assert events == ()
    assert reply == SessionDenied("gw", "w1", "host boot", 5000)


def test_another_worker_takes_over_when_told_to_and_the_old_one_hears_why(held: World) -> None:
    events, reply = held.say(opening(take_over=True), 2, worker="w2")
    assert events[0] == SessionEnded("gw", 1, "w1", SessionEnding.TAKE_OVER)
    assert isinstance(reply, SessionGranted)
    assert reply.epoch == 2
    assert held.say(Heartbeat("gw", 1, 9), 3)[1] == SessionOver("gw", 1, SessionEnding.TAKE_OVER)


def test_another_worker_is_granted_once_the_lease_has_ended(opened: World) -> None:
    events, _ = opened.say(opening(), 10.5, worker="w2")
    assert events[0] == SessionEnded("gw", 1, "w1", SessionEnding.LEASE_ENDED)


def test_a_closed_session_lets_another_worker_in_at_once(opened: World) -> None:
    assert opened.say(CloseSession("gw", 1), 1) == (
        (SessionEnded("gw", 1, "w1", SessionEnding.CLOSED),),
        Acknowledged(),
    )
    events, reply = opened.say(opening(), 1, worker="w2")
    assert isinstance(events[0], SessionOpened)
    assert isinstance(reply, SessionGranted)
    assert opened.say(CloseSession("gw", 1), 2) == ((), Acknowledged())


def test_only_changed_services_are_recorded(opened: World) -> None:
    changed = dataclasses.replace(CUSEEME, idle_ms=1000)
    body = dataclasses.replace(opening(), services=(changed,))
    events, _ = opened.say(body, 1)
    assert events[2:] == (ServiceRemoved("gw", "shared"), ServiceDefined("gw", changed))


# ---- leases ----------------------------------------------------------------------------------------------


def test_a_lease_that_runs_out_is_said_once_and_a_heartbeat_brings_the_worker_back(opened: World) -> None:
    assert opened.say(Heartbeat("gw", 1, 7), 3) == ((), HeartbeatAcknowledged("gw", 1, 7, LEASE_MS))
    assert opened(PassTime(), at(12.9))[0] == ()
    assert next_deadline(opened.state) == at(13).monotonic_ns
    assert opened(PassTime(), at(13))[0] == (WorkerLost("gw", 1, "w1", at(3).wall_ns),)
    assert opened(PassTime(), at(14))[0] == ()
    assert next_deadline(opened.state) is None
    events, reply = opened.say(Heartbeat("gw", 1, 8), 20)
    assert events == (WorkerReturned("gw", 1, "w1", at(3).wall_ns),)
    assert reply == HeartbeatAcknowledged("gw", 1, 8, LEASE_MS)
    assert next_deadline(opened.state) == at(30).monotonic_ns


def test_after_a_restart_of_the_tracker_every_lease_gets_a_full_period(opened: World) -> None:
    opened.state = opened.replayed()
    events, _ = opened(Start("1", "boot", at(9).wall_ns), at(60))
    assert events == (TrackerStarted(2, "1", "boot", at(9).wall_ns),)
    assert opened(PassTime(), at(69.9))[0] == ()
    # It had not been lost at 9 s, so it was heard at 0 s (its opening) or later.
    assert opened(PassTime(), at(70))[0] == (WorkerLost("gw", 1, "w1", at(0).wall_ns),)


def test_time_in_which_the_tracker_did_not_listen_shortens_no_lease(opened: World) -> None:
    opened(WasAway(60 * SECOND_NS), at(62))
    assert opened(PassTime(), at(69.9))[0] == ()
    _, reply = opened.say(opening(), 69.9, worker="w2")
    assert isinstance(reply, SessionDenied)
    assert opened(PassTime(), at(70))[0] == (WorkerLost("gw", 1, "w1", at(0).wall_ns),)


def test_a_heartbeat_of_an_unknown_session_is_answered_that_it_is_over(world: World) -> None:
    assert world.say(Heartbeat("gw", 1, 9)) == ((), SessionOver("gw", 1, None))


def test_a_lease_stays_as_long_as_its_session_was_told_whatever_the_tracker_is_set_to_later(
    opened: World,
) -> None:
    opened.state = opened.replayed()
    opened.state.lease_ms = 1_000
    opened(Start("1", "boot", at(9).wall_ns), at(60))
    assert next_deadline(opened.state) == at(70).monotonic_ns
    assert opened.say(Heartbeat("gw", 1, 1), 61)[1] == HeartbeatAcknowledged("gw", 1, 1, LEASE_MS)
    assert next_deadline(opened.state) == at(71).monotonic_ns


# ---- fenced gateways -------------------------------------------------------------------------------------

HERE, THERE = "one/boot/1", "two/boot/1"


@pytest.fixture
def fenced(world: World) -> World:
    world.say(opening(fence=True, host=HERE))
    return world


def elsewhere(*, take_over: bool = False) -> OpenSession:
    return opening(fence=True, host=THERE, take_over=take_over)


def test_under_fence_a_take_over_on_the_same_host_is_granted_at_once(fenced: World) -> None:
    events, reply = fenced.say(opening(fence=True, host=HERE, take_over=True), 1, worker="w2")
    assert events[0] == SessionEnded("gw", 1, "w1", SessionEnding.TAKE_OVER)
    assert isinstance(reply, SessionGranted)


@pytest.mark.parametrize("worker", ["w1", "w2"])
@pytest.mark.parametrize("host", [THERE, "one/other boot/1", "one/boot/2"])
def test_under_fence_another_host_waits_for_the_old_kernels_lease(
    fenced: World, worker: str, host: str
) -> None:
    body = opening(fence=True, host=host, take_over=True)
    events, reply = fenced.say(body, 4, worker=worker)
    assert events == (SessionRefused("gw", 1, worker, host),)
    assert reply == SessionDenied("gw", "w1", HERE, 6_000)
    assert isinstance(fenced.say(body, 9.9, worker=worker)[1], SessionDenied)
    events, reply = fenced.say(body, 10, worker=worker)
    assert isinstance(reply, SessionGranted)
    assert isinstance(events[0], SessionEnded)


def test_a_take_over_that_waits_keeps_the_lease_from_being_renewed(fenced: World) -> None:
    fenced.say(elsewhere(take_over=True), 4, worker="w2")
    assert fenced.say(Heartbeat("gw", 1, 5), 5) == ((), SessionOver("gw", 1, SessionEnding.TAKE_OVER))
    assert fenced.say(opening(fence=True, host=HERE), 5) == ((), SessionDenied("gw", "w2", THERE, 5_000))
    assert next_deadline(fenced.state) == at(10).monotonic_ns
    fenced.say(CloseSession("gw", 1), 6)
    # Who made room for it stands by, and may be quicker.
    assert fenced.say(opening(fence=True, host=HERE), 6) == ((), SessionDenied("gw", "w2", THERE, 0))
    assert isinstance(fenced.say(elsewhere(take_over=True), 6, worker="w2")[1], SessionGranted)
    assert isinstance(fenced.say(Heartbeat("gw", 2, 1), 7, worker="w2")[1], HeartbeatAcknowledged)


def test_a_take_over_that_is_given_up_holds_nobody_off(fenced: World) -> None:
    fenced.say(elsewhere(take_over=True), 1, worker="w2")
    assert isinstance(fenced.say(Heartbeat("gw", 1, 5), 6.1)[1], HeartbeatAcknowledged)
    assert next_deadline(fenced.state) == at(16.1).monotonic_ns


def test_a_standby_takes_no_lease_from_a_worker_that_renews_it(fenced: World) -> None:
    fenced.say(elsewhere(), 4, worker="w2")
    assert isinstance(fenced.say(Heartbeat("gw", 1, 5), 5)[1], HeartbeatAcknowledged)
    assert isinstance(fenced.say(elsewhere(), 14, worker="w2")[1], SessionDenied)
    assert isinstance(fenced.say(elsewhere(), 15, worker="w2")[1], SessionGranted)


@pytest.mark.parametrize("worker", ["w1", "w2"])
def test_a_session_in_the_place_of_a_fenced_one_has_no_shorter_lease_than_the_kernel_counts(
    fenced: World, worker: str
) -> None:
    fenced.say(Heartbeat("gw", 1, 1), 1)  # its kernel may forward until 11
    fenced.state.lease_ms = 3_000
    taking = opening(fence=True, host=HERE, take_over=True)
    reply = fenced.say(taking, 2, worker=worker)[1]
    assert isinstance(reply, SessionGranted)
    assert reply.lease_ms == LEASE_MS
    # The worker dies before its table replaces the old one, and the tracker is started anew.
    fenced.state = fenced.replayed()
    fenced.state.lease_ms = 3_000
    fenced(Start("1", "boot", at(2).wall_ns), at(2.5))
    assert isinstance(fenced.say(elsewhere(take_over=True), 10.9, worker="w3")[1], SessionDenied)


def test_a_shorter_lease_begins_when_no_kernel_counts_the_longer_one(fenced: World) -> None:
    fenced.state.lease_ms = 3_000
    fenced.say(CloseSession("gw", 1), 1)
    closed = fenced.say(opening(fence=True, host=HERE), 1)[1]
    assert isinstance(closed, SessionGranted)
    fenced.state.lease_ms = 2_000
    run_out = fenced.say(elsewhere(), 4, worker="w2")[1]
    assert isinstance(run_out, SessionGranted)
    assert (closed.lease_ms, run_out.lease_ms) == (3_000, 2_000)


def test_a_longer_lease_begins_with_the_next_session(fenced: World) -> None:
    fenced.state.lease_ms = 20_000
    reply = fenced.say(opening(fence=True, host=HERE), 1)[1]
    assert isinstance(reply, SessionGranted)
    assert reply.lease_ms == 20_000


def test_without_fence_a_take_over_from_another_host_is_granted_at_once(world: World) -> None:
    world.say(opening(host=HERE))
    assert isinstance(world.say(opening(host=THERE, take_over=True), 1, worker="w2")[1], SessionGranted)


@pytest.mark.parametrize(
    ("host", "moved_epoch"),
    [
        (HERE, 0),
        (THERE, 2),
        ("one/boot/2", 2),  # another network namespace: both kernels' tables live
        ("one/other boot/1", 0),  # the machine was started anew: what its kernel held is gone
    ],
)
def test_who_comes_from_beside_is_told_since_when(world: World, host: str, moved_epoch: int) -> None:
    world.say(opening(host=HERE))
    for epoch, seconds in ((2, 1), (3, 2)):
        reply = world.say(opening(host=host, take_over=True), seconds, worker="w2")[1]
        assert isinstance(reply, SessionGranted)
        assert (reply.epoch, reply.moved_epoch) == (epoch, moved_epoch)
