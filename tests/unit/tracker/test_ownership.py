"""Who owns a port: a playbook of commands and what they lead to, then every order of them."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tracker.wire import (
    ANN,
    BOB,
    CUSEEME,
    OTHER_PUBLIC,
    PER_PEER,
    PUBLIC,
    REFLECTOR,
    SECOND_NS,
    at,
    claim,
    opening,
)
from tracker.claims import OTHER_HOSTS, REFUSED_HOSTS_LIMIT
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    ClockStepped,
    Ending,
    Event,
    HolderNamed,
    KernelStateRestored,
    Policy,
    PortBound,
    PortRefused,
    PortUnbound,
    PublicAddressChanged,
    RefusalsEnded,
    ServiceDefined,
    ServiceRemoved,
    SessionEnded,
    SessionEnding,
    SessionOpened,
    SessionRefused,
    TrackerStarted,
    TrackerStopped,
    WorkerLost,
    WorkerReturned,
)
from tracker.instant import Instant
from tracker.messages import (
    Acknowledged,
    ClaimGranted,
    ClaimRefusal,
    ClaimRefused,
    CloseSession,
    Durable,
    Heartbeat,
    HeartbeatAcknowledged,
    OpenSession,
    ReplyBody,
    SessionDenied,
    SessionGranted,
    SessionOver,
    WithdrawBinding,
)
from tracker.orders import (
    EndFreeze,
    EndReservation,
    FreezeClaims,
    LiftBar,
    Order,
    ReleaseBinding,
    ReservePort,
    RevokeBinding,
)
from tracker.ownership import (
    Command,
    FromOperator,
    FromWorker,
    PassTime,
    Start,
    Stop,
    WasAway,
    decide,
    next_deadline,
)
from tracker.transitions import State, apply, apply_unlogged

LEASE_MS = 10_000


class World:
    """A tracker's core and its log, as one list of events."""

    def __init__(self) -> None:
        self.state = State(lease_ms=LEASE_MS)
        self.log: list[tuple[int, Event]] = []

    def __call__(self, command: Command, now: Instant) -> tuple[Sequence[Event], ReplyBody | None]:
        before = copy.deepcopy(self.state)
        decision = decide(self.state, command, now)
        assert self.state == before, "decide changed the state"
        for event in decision.events:
            apply(self.state, event, now.wall_ns)
            self.log.append((now.wall_ns, event))
        for change in decision.unlogged:
            apply_unlogged(self.state, change)
        return decision.events, decision.reply

    def say(
        self, body: Durable | Heartbeat, seconds: float = 0, *, worker: str = "w1", age_ms: int = 0
    ) -> tuple[Sequence[Event], ReplyBody | None]:
        return self(FromWorker(worker, body, age_ms), at(seconds))

    def replayed(self) -> State:
        state = State(lease_ms=LEASE_MS)
        for wall_ns, event in self.log:
            apply(state, event, wall_ns)
        return state


@pytest.fixture
def world() -> World:
    world = World()
    world(Start("1", "boot", None), at(0))
    return world


@pytest.fixture
def opened(world: World) -> World:
    world.say(opening())
    return world


@pytest.fixture
def held(opened: World) -> World:
    opened.say(claim(ANN), 1)
    return opened


def withdrawn(binding: int = 1, epoch: int = 1, reason: Ending = Ending.IDLE) -> BindingWithdrawn:
    return BindingWithdrawn("gw", epoch, binding, reason, at(5).wall_ns, None, 3, 400, 2)


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


# ---- claims ----------------------------------------------------------------------------------------------


def test_a_free_resource_is_bound_and_the_claimant_sees_its_binding(opened: World) -> None:
    events, reply = opened.say(claim(ANN), 1)
    (bound,) = events
    assert isinstance(bound, PortBound)
    assert (bound.binding, bound.holder, bound.epoch, bound.destination) == (1, ANN, 1, REFLECTOR)
    assert isinstance(reply, ClaimGranted)
    assert reply.binding == opened.state.bindings[1].view()
    assert reply.binding.since_ns == at(1).wall_ns


def test_the_holder_that_claims_again_gets_the_same_binding_and_no_record(held: World) -> None:
    events, reply = held.say(claim(ANN, source_port=9), 3)
    assert events == ()
    assert reply == ClaimGranted(held.state.bindings[1].view())


def test_a_second_host_is_refused_and_a_flood_of_it_is_one_record_and_a_count(held: World) -> None:
    events, reply = held.say(claim(BOB), 2)
    assert events == (PortRefused(1, BOB, None, 17, 7648, REFLECTOR, 7648),)
    assert reply == ClaimRefused(ClaimRefusal.HELD, ANN, 1)
    for second in range(3, 103):
        assert held.say(claim(BOB), second) == ((), reply)
    assert held.say(withdrawn(), 200)[0] == (
        withdrawn(),
        RefusalsEnded(1, BOB, 101, at(102).wall_ns),
        PortUnbound(1, Ending.IDLE),
    )


def test_claims_from_ever_new_addresses_fill_neither_log_nor_memory(held: World) -> None:
    hosts = [bytes((10, 0, number // 256, number % 256)) for number in range(1, REFUSED_HOSTS_LIMIT + 51)]
    said = [held.say(claim(host), 2) for host in hosts]
    events = [event for events, _ in said for event in events]
    assert [event.claimant for event in events if isinstance(event, PortRefused)] == [
        *hosts[:REFUSED_HOSTS_LIMIT],
        OTHER_HOSTS,
    ]
    assert {reply for _, reply in said} == {ClaimRefused(ClaimRefusal.HELD, ANN, 1)}
    assert held.say(claim(hosts[0]), 3)[0] == ()
    ended, _ = held.say(withdrawn(), 4)
    assert len(ended) == REFUSED_HOSTS_LIMIT + 3
    assert RefusalsEnded(1, OTHER_HOSTS, 50, at(2).wall_ns) in ended
    assert RefusalsEnded(1, hosts[0], 2, at(3).wall_ns) in ended


def test_after_unbinding_the_next_claimant_gets_a_new_number(held: World) -> None:
    held.say(withdrawn(), 2)
    _, reply = held.say(claim(BOB), 3)
    assert isinstance(reply, ClaimGranted)
    assert (reply.binding.binding, reply.binding.holder) == (2, BOB)


@pytest.mark.parametrize(
    ("changes", "age_ms", "reason"),
    [
        ({}, 1001, ClaimRefusal.STALE),
        ({"epoch": 2}, 0, ClaimRefusal.STALE_EPOCH),
        ({"gateway": "other"}, 0, ClaimRefusal.STALE_EPOCH),
        ({"public_address": OTHER_PUBLIC}, 0, ClaimRefusal.UNKNOWN_ADDRESS),
        ({"service": "none"}, 0, ClaimRefusal.UNKNOWN_SERVICE),
        ({"peer": REFLECTOR}, 0, ClaimRefusal.WRONG_SHARING),
        ({"service": "shared"}, 0, ClaimRefusal.WRONG_SHARING),
    ],
)
def test_an_unfit_claim_is_refused_with_its_reason_and_no_record(
    opened: World, changes: dict[str, Any], age_ms: int, reason: ClaimRefusal
) -> None:
    body = claim(ANN, **changes)
    assert opened.say(body, 1, age_ms=age_ms) == ((), ClaimRefused(reason, None, None))


def test_a_claim_of_the_worker_that_was_taken_over_is_refused(opened: World) -> None:
    opened.say(opening(take_over=True), 1, worker="w2")
    for epoch in (1, 2):  # it may guess the new epoch: that is not its own
        _, reply = opened.say(claim(ANN, epoch=epoch), 2)
        assert reply == ClaimRefused(ClaimRefusal.STALE_EPOCH, None, None)


def test_a_fixed_service_is_bound_to_nobody_but_its_holder(world: World) -> None:
    fixed = dataclasses.replace(CUSEEME, policy=Policy.FIXED, holder=ANN)
    world.say(dataclasses.replace(opening(), services=(fixed,)))
    assert world.say(claim(BOB)) == ((), ClaimRefused(ClaimRefusal.FIXED, None, None))
    assert isinstance(world.say(claim(ANN))[1], ClaimGranted)
    assert world.say(claim(BOB)) == ((), ClaimRefused(ClaimRefusal.FIXED, None, None))


@pytest.fixture
def contested(world: World) -> World:
    """The last one wins, and Ann holds since second 0."""
    last = dataclasses.replace(CUSEEME, policy=Policy.LAST)
    world.say(dataclasses.replace(opening(), services=(last,)))
    world.say(claim(ANN))
    return world


def test_the_last_one_gets_it_when_the_one_before_is_gone_from_the_kernel(contested: World) -> None:
    assert contested.say(claim(BOB), 5) == ((), WithdrawBinding("gw", 1, Ending.TAKE_OVER))
    assert list(contested.state.held.values()) == [1]
    contested.say(withdrawn(reason=Ending.TAKE_OVER), 5)
    events, reply = contested.say(claim(BOB), 5)
    assert isinstance(reply, ClaimGranted)
    assert isinstance(events[0], PortBound)


@pytest.mark.parametrize(("seconds", "taken"), [(0.999, False), (1, True), (-0.1, True), (-9, True)])
def test_a_binding_is_taken_over_when_it_is_a_second_old(
    contested: World, seconds: float, taken: bool
) -> None:
    """Or when it is from the future: the clock was put back, and nobody knows how old it is."""
    _, reply = contested.say(claim(BOB), seconds)
    refused = ClaimRefused(ClaimRefusal.HELD, ANN, 1)
    assert reply == (WithdrawBinding("gw", 1, Ending.TAKE_OVER) if taken else refused)


def test_whom_an_operator_keeps_from_claiming_takes_nothing_over(contested: World) -> None:
    contested(FromOperator("olga", FreezeClaims(None, "no more")), at(3))
    assert contested.say(claim(BOB), 5)[1] == ClaimRefused(ClaimRefusal.FROZEN, None, None)


def test_the_second_host_of_a_peer_gets_the_second_public_address(world: World) -> None:
    world.say(dataclasses.replace(opening(), public_addresses=(PUBLIC, OTHER_PUBLIC)))
    carl = bytes([192, 168, 0, 4])

    def wanted(holder: bytes) -> ReplyBody | None:
        return world.say(claim(holder, service="shared", peer=REFLECTOR))[1]

    for holder, address in ((ANN, PUBLIC), (BOB, OTHER_PUBLIC), (ANN, PUBLIC), (BOB, OTHER_PUBLIC)):
        reply = wanted(holder)
        assert isinstance(reply, ClaimGranted)
        assert (reply.binding.holder, reply.binding.resource.public_address) == (holder, address)
    assert wanted(carl) == ClaimRefused(ClaimRefusal.HELD, ANN, 1)
    assert isinstance(world.say(claim(carl, service="shared", peer=BOB))[1], ClaimGranted)


def test_a_per_peer_service_is_held_by_several_hosts_of_different_peers(opened: World) -> None:
    for holder, peer in ((ANN, REFLECTOR), (BOB, OTHER_PUBLIC)):
        assert isinstance(opened.say(claim(holder, service="shared", peer=peer))[1], ClaimGranted)
    assert opened.say(claim(BOB, service="shared", peer=REFLECTOR))[1] == ClaimRefused(
        ClaimRefusal.HELD, ANN, 1
    )


def test_a_full_gateway_refuses_new_bindings_but_not_its_holders(
    opened: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.claims.BINDINGS_LIMIT", 1)
    first = claim(ANN, service="shared", peer=REFLECTOR)
    assert isinstance(opened.say(first)[1], ClaimGranted)
    assert isinstance(opened.say(first)[1], ClaimGranted)
    assert opened.say(claim(BOB))[1] == ClaimRefused(ClaimRefusal.FULL, None, None)


# ---- reports ---------------------------------------------------------------------------------------------


def test_reports_of_an_open_binding_are_recorded_as_said(held: World) -> None:
    installed = BindingInstalled("gw", 1, 1, at(1).wall_ns)
    named = HolderNamed("gw", 1, 1, "Ann")
    assert held.say(installed, 2) == ((installed,), Acknowledged())
    assert held.say(named, 2) == ((named,), Acknowledged())
    assert held.say(named, 3) == ((), Acknowledged())
    assert held.state.bindings[1].user_name == "Ann"


@pytest.mark.parametrize("report", [withdrawn(2), withdrawn(1, epoch=0), withdrawn(1, epoch=2)])
def test_a_report_of_no_open_binding_or_no_such_epoch_is_acknowledged_and_not_recorded(
    held: World, report: BindingWithdrawn
) -> None:
    assert held.say(report, 2) == ((), Acknowledged())


def test_a_withdrawal_of_an_older_epoch_of_the_same_worker_is_taken(held: World) -> None:
    held.say(opening(), 2)
    events, _ = held.say(withdrawn(epoch=1), 3)
    assert events[-1] == PortUnbound(1, Ending.IDLE)


def test_a_withdrawal_by_a_worker_that_was_taken_over_is_not_taken(held: World) -> None:
    held.say(opening(take_over=True), 2, worker="w2")
    assert held.say(withdrawn(epoch=1), 3) == ((), Acknowledged())
    assert held.say(withdrawn(epoch=2), 3) == ((), Acknowledged())
    assert held.say(withdrawn(epoch=2), 4, worker="w2")[0][-1] == PortUnbound(1, Ending.IDLE)


def test_what_a_worker_saw_before_another_one_spoke_is_not_taken_when_it_is_back(held: World) -> None:
    held.say(opening(take_over=True), 2, worker="w2")
    held.say(opening(take_over=True), 3)
    held.say(opening(), 4)
    # In w2's time the port may have been given up and taken again, in another kernel.
    assert held.say(withdrawn(epoch=1), 5) == ((), Acknowledged())
    assert held.say(HolderNamed("gw", 2, 1, "Bob"), 5) == ((), Acknowledged())
    assert held.say(withdrawn(epoch=3), 5)[0][-1] == PortUnbound(1, Ending.IDLE)


def test_a_withdrawal_for_another_gateway_s_binding_is_not_taken(held: World) -> None:
    held.say(opening("gw2"), 2, worker="w2")
    stranger = dataclasses.replace(withdrawn(), gateway="gw2")
    assert held.say(stranger, 3, worker="w2") == ((), Acknowledged())


def test_a_hole_is_recorded_whoever_saw_it(world: World) -> None:
    hole = KernelStateRestored("gw", 4, "table ip porthold", at(1).wall_ns, at(2).wall_ns)
    assert world.say(hole, 3, worker="stranger") == ((hole,), Acknowledged())


def test_claims_follow_the_public_address(opened: World) -> None:
    opened.say(PublicAddressChanged("gw", 1, PUBLIC, OTHER_PUBLIC, at(1).wall_ns), 1)
    assert opened.say(claim(ANN), 2)[1] == ClaimRefused(ClaimRefusal.UNKNOWN_ADDRESS, None, None)
    assert isinstance(opened.say(claim(ANN, public_address=OTHER_PUBLIC), 2)[1], ClaimGranted)


def test_nobody_changes_the_public_address_of_another_worker_s_session(opened: World) -> None:
    lie = PublicAddressChanged("gw", 1, PUBLIC, OTHER_PUBLIC, at(1).wall_ns)
    assert opened.say(lie, 1, worker="w2") == ((), Acknowledged())
    assert isinstance(opened.say(claim(ANN), 2)[1], ClaimGranted)
    late = dataclasses.replace(lie, epoch=0)
    assert opened.say(late, 3, worker="w2") == ((late,), Acknowledged())  # of a session that is over: a fact


# ---- clock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [-3600, -2, 2, 3600])
def test_a_clock_step_is_the_first_event_after_it(opened: World, step_s: int) -> None:
    due = at(5)
    stepped = Instant(due.wall_ns + step_s * SECOND_NS, due.monotonic_ns)
    events, reply = opened(FromWorker("w1", claim(ANN)), stepped)
    assert events[0] == ClockStepped(due.wall_ns, stepped.wall_ns)
    assert isinstance(events[1], PortBound)
    assert isinstance(reply, ClaimGranted)
    later = Instant(stepped.wall_ns + SECOND_NS, stepped.monotonic_ns + SECOND_NS)
    assert opened(PassTime(), later)[0] == ()


def test_a_clock_that_is_slewed_makes_no_record_however_far(opened: World) -> None:
    for second in range(1, 9):
        now = at(second)
        assert opened(PassTime(), Instant(now.wall_ns + second * SECOND_NS // 2, now.monotonic_ns))[0] == ()


def test_a_clock_that_went_back_while_the_tracker_was_away_is_said_before_its_start(opened: World) -> None:
    state = opened.replayed()
    earlier = Instant(at(-100).wall_ns, 5)
    events = decide(state, Start("1", "boot", at(0).wall_ns), earlier).events
    assert events[0] == ClockStepped(at(0).wall_ns, earlier.wall_ns)
    assert isinstance(events[1], TrackerStarted)


def test_stop_is_a_record(opened: World) -> None:
    assert opened(Stop(), at(1))[0] == (TrackerStopped(1),)


def test_an_event_that_does_not_fit_the_state_is_no_event(held: World) -> None:
    bound = dataclasses.replace(held.state.bindings[1].bound, binding=2)
    for wrong in (bound, PortUnbound(9, Ending.IDLE), WorkerLost("none", 1, "w", 0)):
        with pytest.raises(KeyError):
            apply(held.state, wrong, 0)


# ---- every order of them ---------------------------------------------------------------------------------

WORKERS = ("w1", "w2")
GATEWAYS = ("gw", "gw2")


def commands() -> st.SearchStrategy[FromWorker | FromOperator | PassTime | Start]:
    gateways, epochs, bindings = st.sampled_from(GATEWAYS), st.integers(0, 4), st.integers(1, 4)
    claims = st.builds(
        lambda gateway, epoch, holder, peer: claim(
            holder, epoch, gateway=gateway, peer=peer, service="shared" if peer else "cuseeme"
        ),
        gateways,
        epochs,
        st.sampled_from([ANN, BOB]),
        st.sampled_from([None, REFLECTOR, OTHER_PUBLIC]),
    )
    bodies = st.one_of(
        st.builds(lambda gateway, take: opening(gateway, take_over=take), gateways, st.booleans()),
        st.builds(CloseSession, gateways, epochs),
        claims,
        st.builds(Heartbeat, gateways, epochs, st.just(1)),
        st.builds(BindingInstalled, gateways, epochs, bindings, st.just(5)),
        st.builds(
            lambda gateway, epoch, binding: dataclasses.replace(withdrawn(binding, epoch), gateway=gateway),
            gateways,
            epochs,
            bindings,
        ),
        st.builds(HolderNamed, gateways, epochs, bindings, st.sampled_from(["a", "b"])),
    )
    said = st.builds(FromWorker, st.sampled_from(WORKERS), bodies)
    ordered = st.builds(FromOperator, st.just("olga"), orders())
    return st.one_of(said, said, said, ordered, st.just(PassTime()), st.just(Start("1", "boot", None)))


def orders() -> st.SearchStrategy[Order]:
    gateways, services = st.sampled_from(GATEWAYS), st.sampled_from(["cuseeme", "shared"])
    bindings, hosts, why = st.integers(1, 4), st.sampled_from([ANN, BOB]), st.just("because")
    return st.one_of(
        st.builds(ReleaseBinding, bindings, why),
        st.builds(RevokeBinding, bindings, st.sampled_from([None, 3000]), why),
        st.builds(LiftBar, hosts, st.none() | gateways, st.none() | services, why),
        st.builds(ReservePort, gateways, services, hosts, why),
        st.builds(EndReservation, gateways, services, why),
        st.builds(FreezeClaims, st.none() | gateways, why),
        st.builds(EndFreeze, st.none() | gateways, why),
    )


@given(st.lists(st.tuples(commands(), st.integers(0, 12)), max_size=60))
def test_whatever_comes_in_whatever_order_the_rules_hold(play: list[tuple[Command, int]]) -> None:
    world = World()
    passed = 0
    owner: dict[object, int] = {}
    epochs: dict[str, int] = {}
    for command, seconds in play:
        passed += seconds
        if isinstance(command, Start):
            world.state = world.replayed()
        events, reply = world(command, at(passed))
        for event in events:
            match event:
                case PortBound():
                    assert event.resource not in owner, "two holders"
                    owner[event.resource] = event.binding
                case PortUnbound():
                    resources = [resource for resource, number in owner.items() if number == event.binding]
                    assert len(resources) == 1
                    del owner[resources[0]]
                case SessionOpened():
                    assert event.epoch > epochs.get(event.gateway, 0), "an epoch given twice"
                    epochs[event.gateway] = event.epoch
                case _:
                    pass
        if isinstance(reply, ClaimGranted):
            assert owner[reply.binding.resource] == reply.binding.binding, "granted, not recorded"
        assert isinstance(reply, ReplyBody) == isinstance(command, FromWorker | FromOperator)
        assert world.replayed() == world.state
        assert world.state.held == owner
