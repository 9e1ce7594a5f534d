"""Who owns a port: a playbook of commands and what they lead to, then every order of them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tracker.core import World, withdrawn
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
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    ClockStepped,
    Ending,
    HolderNamed,
    KernelStateRestored,
    PortBound,
    PortUnbound,
    PublicAddressChanged,
    SessionOpened,
    TrackerStarted,
    TrackerStopped,
    WorkerLost,
)
from tracker.instant import Instant
from tracker.messages import (
    Acknowledged,
    ClaimGranted,
    ClaimRefusal,
    ClaimRefused,
    CloseSession,
    Heartbeat,
    ReplyBody,
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
    decide,
)
from tracker.transitions import apply

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
