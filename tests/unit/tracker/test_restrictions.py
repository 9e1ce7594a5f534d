"""What an operator orders: bindings ended, hosts barred, ports reserved, claims frozen; each said once."""

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from tests.unit.tracker.core import World, withdrawn
from tests.unit.tracker.wire import ANN, BOB, CUSEEME, REFLECTOR, at, claim, opening
from tracker.claims import OTHER_HOSTS, REFUSED_HOSTS_LIMIT
from tracker.events import (
    BarLifted,
    BindingWithdrawn,
    ClaimDenied,
    ClaimsFrozen,
    Ending,
    FreezeEnded,
    HostBarred,
    Policy,
    PortBound,
    PortReserved,
    PortUnbound,
    ReservationEnded,
    Restraint,
    WithdrawalOrdered,
)
from tracker.messages import (
    ClaimGranted,
    ClaimRefusal,
    ClaimRefused,
    CloseSession,
    Heartbeat,
    WithdrawBinding,
)
from tracker.orders import (
    EndFreeze,
    EndReservation,
    FreezeClaims,
    LiftBar,
    Order,
    OrderRefused,
    OrderTaken,
    ReleaseBinding,
    ReservePort,
    RevokeBinding,
    Withdrawing,
    Withdrawn,
)
from tracker.ownership import FromOperator, FromWorker, PassTime, Start, decide, next_deadline
from tracker.transitions import Decision


class Operated(World):
    """A tracker with a worker, a holder, and an operator."""

    def __init__(self) -> None:
        super().__init__()
        self(Start("1", "boot", None), at(0))
        self.say(opening())
        self.say(claim(ANN), 1)

    def order(self, order: Order, seconds: float = 2) -> tuple[Any, Any]:
        return self(FromOperator("olga", order), at(seconds))

    def decide(self, order: Order, seconds: float = 2) -> Decision:
        return decide(self.state, FromOperator("olga", order), at(seconds))

    def refusal(self, holder: bytes, seconds: float, **changes: Any) -> ClaimRefusal | None:
        reply = self.say(claim(holder, **changes), seconds)[1]
        return reply.reason if isinstance(reply, ClaimRefused) else None


@pytest.fixture
def world() -> Operated:
    return Operated()


ORDER = WithdrawBinding("gw", 1, Ending.RELEASE)


def test_a_release_is_logged_with_who_and_why_and_the_worker_is_told_after_it(world: Operated) -> None:
    decision = world.decide(ReleaseBinding(1, "lunch"))
    assert decision.events == (WithdrawalOrdered(1, Ending.RELEASE, "olga", "lunch"),)
    assert decision.reply == Withdrawing(1, "w1", lost=False)
    assert decision.orders == (("w1", ORDER),)


def test_a_release_given_twice_is_one_record_and_the_worker_is_told_again(world: Operated) -> None:
    world.order(ReleaseBinding(1, "lunch"))
    again = world.decide(ReleaseBinding(1, "lunch"), 3)
    assert (again.events, again.orders) == ((), (("w1", ORDER),))


def test_a_released_port_is_anybody_s_once_the_kernel_has_let_go_and_not_before(world: Operated) -> None:
    world.order(ReleaseBinding(1, "lunch"))
    assert world.refusal(BOB, 2) is ClaimRefusal.HELD
    assert world.refusal(ANN, 2) is ClaimRefusal.ENDING
    events, _ = world.say(withdrawn(reason=Ending.RELEASE), 3)
    assert events[-1] == PortUnbound(1, Ending.RELEASE)
    assert world.refusal(ANN, 3) is None
    assert world.order(ReleaseBinding(1, "lunch"), 4) == ((), Withdrawn(1, None, None))
    assert 1 not in world.state.bindings


@pytest.mark.parametrize("number", [0, 2])
def test_a_binding_that_never_was_is_refused(world: Operated, number: int) -> None:
    assert world.order(ReleaseBinding(number, "x")) == (
        (),
        OrderRefused(f"there never was a binding {number}"),
    )
    assert world.order(RevokeBinding(number, None, "x"))[0] == ()


def test_the_worker_hears_of_it_with_each_heartbeat_until_it_has_let_go(world: Operated) -> None:
    world.order(ReleaseBinding(1, "lunch"))
    beat = FromWorker("w1", Heartbeat("gw", 1, 5))
    assert decide(world.state, beat, at(3)).orders == (("w1", ORDER),)
    assert decide(world.replayed(), beat, at(3)).orders == (("w1", ORDER),)
    world.say(withdrawn(reason=Ending.RELEASE), 3)
    assert decide(world.state, beat, at(4)).orders == ()


def test_an_order_given_without_a_worker_waits_for_the_next_session(world: Operated) -> None:
    world.say(CloseSession("gw", 1), 2)
    assert world.order(ReleaseBinding(1, "lunch"), 3)[1] == Withdrawing(1, None, lost=True)
    decision = decide(world.state, FromWorker("w2", opening()), at(4))
    assert decision.orders == (("w2", ORDER),)


def test_an_order_to_a_lost_worker_says_that_it_is_lost(world: Operated) -> None:
    assert world.order(ReleaseBinding(1, "lunch"), 20)[1] == Withdrawing(1, "w1", lost=True)
    world(PassTime(), at(21))
    assert world.order(ReleaseBinding(1, "lunch"), 21)[1] == Withdrawing(1, "w1", lost=True)


def test_a_stronger_word_counts_and_a_binding_can_end_otherwise_meanwhile(world: Operated) -> None:
    world.order(ReleaseBinding(1, "lunch"))
    events, _ = world.order(RevokeBinding(1, None, "noise"), 3)
    assert [type(event) for event in events] == [HostBarred, WithdrawalOrdered]
    assert world.state.bindings[1].ordered is Ending.REVOKE
    events, _ = world.say(withdrawn(reason=Ending.IDLE), 4)
    assert [type(event) for event in events] == [BindingWithdrawn, PortUnbound]


def test_a_revoked_host_is_barred_before_it_can_claim_again_and_others_are_not(world: Operated) -> None:
    events, _ = world.order(RevokeBinding(1, None, "noise"))
    assert events == (
        HostBarred("gw", "cuseeme", ANN, None, "olga", "noise"),
        WithdrawalOrdered(1, Ending.REVOKE, "olga", "noise"),
    )
    world.say(withdrawn(reason=Ending.REVOKE), 3)
    events, reply = world.say(claim(ANN), 4)
    assert reply == ClaimRefused(ClaimRefusal.REVOKED, None, None)
    assert events == (ClaimDenied("gw", "cuseeme", ANN, Restraint.REVOKED, None, 17, 7648, REFLECTOR, 7648),)
    assert world.say(claim(ANN), 5) == ((), reply)
    assert world.refusal(ANN, 5, service="shared", peer=REFLECTOR) is None
    assert world.refusal(BOB, 5) is None


def test_claims_of_a_frozen_port_from_ever_new_addresses_are_so_many_records_and_one(world: Operated) -> None:
    world.say(withdrawn(reason=Ending.IDLE), 2)
    world.order(FreezeClaims("gw", "works"), 2)
    hosts = [bytes((10, 0, number // 256, number % 256)) for number in range(1, REFUSED_HOSTS_LIMIT + 51)]
    denied = [event for host in hosts for event in world.say(claim(host), 3)[0]]
    assert len(denied) == REFUSED_HOSTS_LIMIT + 1
    assert isinstance(denied[-1], ClaimDenied)
    assert denied[-1].claimant == OTHER_HOSTS
    assert world.refusal(hosts[-1], 3) is ClaimRefusal.FROZEN


def test_a_bar_ends_when_its_time_is_over_and_that_is_a_record(world: Operated) -> None:
    world.order(RevokeBinding(1, 5000, "noise"), 2)
    world.say(withdrawn(reason=Ending.REVOKE), 3)
    assert next_deadline(world.state) == at(7).monotonic_ns
    assert world(PassTime(), at(6.9))[0] == ()
    assert world.refusal(ANN, 6.9) is ClaimRefusal.REVOKED
    assert world(PassTime(), at(7))[0] == (BarLifted("gw", "cuseeme", ANN, None, "noise"),)
    assert world.refusal(ANN, 7) is None


def test_a_revocation_for_another_time_counts_though_the_worker_has_not_let_go(world: Operated) -> None:
    world.order(RevokeBinding(1, 5000, "noise"), 2)
    assert world.order(RevokeBinding(1, 5000, "noise"), 3)[0] == ()  # the same again, as commands give it
    events, _ = world.order(RevokeBinding(1, None, "for good"), 4)
    assert events == (HostBarred("gw", "cuseeme", ANN, None, "olga", "for good"),)
    assert world.order(RevokeBinding(1, None, "for good"), 5)[0] == ()
    world.say(withdrawn(reason=Ending.REVOKE), 6)
    world(PassTime(), at(60))
    assert world.refusal(ANN, 60) is ClaimRefusal.REVOKED


def test_a_lifted_bar_stays_lifted_until_somebody_revokes_anew(world: Operated) -> None:
    revoke = RevokeBinding(1, None, "noise")
    world.order(revoke, 2)
    world.order(LiftBar(ANN, None, None, "sorry"), 3)
    assert world(FromOperator("olga", revoke, again=True), at(4))[0] == (), "she still waits for its end"
    assert world.order(revoke, 5)[0] == (HostBarred("gw", "cuseeme", ANN, None, "olga", "noise"),)


def test_two_who_wait_for_the_same_end_do_not_bar_in_turns(world: Operated) -> None:
    first, second = RevokeBinding(1, 5000, "noise"), RevokeBinding(1, 9000, "noise")
    world.order(first, 2)
    world.order(second, 2)
    for order in (first, second):
        assert world(FromOperator("olga", order, again=True), at(3))[0] == ()


def test_a_bar_is_lifted_by_order_wherever_the_host_is_barred(world: Operated) -> None:
    world.order(RevokeBinding(1, None, "noise"))
    assert world.order(LiftBar(BOB, None, None, "sorry")) == ((), OrderTaken(news=False))
    assert world.order(LiftBar(ANN, "gw2", None, "sorry")) == ((), OrderTaken(news=False))
    lifted = BarLifted("gw", "cuseeme", ANN, "olga", "sorry")
    assert world.order(LiftBar(ANN, None, None, "sorry")) == ((lifted,), OrderTaken(news=True))
    assert world.order(LiftBar(ANN, None, None, "sorry")) == ((), OrderTaken(news=False))


def test_a_reserved_port_is_one_host_s_also_while_nobody_holds_it(world: Operated) -> None:
    reserve = ReservePort("gw", "cuseeme", BOB, "his talk")
    assert world.order(reserve)[0] == (PortReserved("gw", "cuseeme", BOB, "olga", "his talk"),)
    assert world.order(reserve) == ((), OrderTaken(news=False))
    assert world.refusal(ANN, 3) is None, "who holds it keeps it"
    world.say(withdrawn(), 4)
    assert world.refusal(ANN, 5) is ClaimRefusal.RESERVED
    assert world.refusal(BOB, 5) is None


def test_a_reservation_for_another_ends_the_one_before(world: Operated) -> None:
    world.order(ReservePort("gw", "cuseeme", BOB, "his talk"))
    assert world.order(ReservePort("gw", "cuseeme", ANN, "hers"), 3)[0] == (
        ReservationEnded("gw", "cuseeme", BOB, "olga", "hers"),
        PortReserved("gw", "cuseeme", ANN, "olga", "hers"),
    )
    assert world.order(EndReservation("gw", "cuseeme", "over"), 4)[0] == (
        ReservationEnded("gw", "cuseeme", ANN, "olga", "over"),
    )
    assert world.order(EndReservation("gw", "cuseeme", "over"), 4) == ((), OrderTaken(news=False))


def test_only_what_there_is_can_be_reserved_or_frozen(world: Operated) -> None:
    for order in (ReservePort("gw", "http", BOB, "x"), ReservePort("gw2", "cuseeme", BOB, "x")):
        assert isinstance(world.order(order)[1], OrderRefused)
    assert isinstance(world.order(FreezeClaims("gw2", "x"))[1], OrderRefused)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "203.0.113.1"])
def test_nothing_is_reserved_for_who_can_never_come_from_inside(world: Operated, host: str) -> None:
    events, reply = world.order(ReservePort("gw", "cuseeme", IPv4Address(host).packed, "x"))
    assert isinstance(reply, OrderRefused)
    assert host in reply.reason
    assert events == ()


def test_a_fixed_holder_s_port_is_reserved_for_nobody_else(world: Operated) -> None:
    fixed = replace(CUSEEME, policy=Policy.FIXED, holder=ANN)
    world.say(replace(opening(), services=(fixed,)), 2)
    refused = world.order(ReservePort("gw", "cuseeme", BOB, "his talk"), 3)[1]
    assert isinstance(refused, OrderRefused)
    assert "192.168.0.2" in refused.reason
    assert world.order(ReservePort("gw", "cuseeme", ANN, "hers"), 3)[1] == OrderTaken(news=True)


@pytest.mark.parametrize("gateway", ["gw", None])
def test_frozen_claims_are_refused_and_calls_go_on(world: Operated, gateway: str | None) -> None:
    assert world.order(FreezeClaims(gateway, "work"))[0] == (ClaimsFrozen(gateway, "olga", "work"),)
    assert world.order(FreezeClaims(gateway, "work")) == ((), OrderTaken(news=False))
    assert world.refusal(ANN, 3) is None
    assert world.refusal(BOB, 3, service="shared", peer=REFLECTOR) is ClaimRefusal.FROZEN
    world.say(withdrawn(), 4)
    assert world.refusal(BOB, 5) is ClaimRefusal.FROZEN
    assert world.order(EndFreeze(gateway, "done"), 6)[0] == (FreezeEnded(gateway, "olga", "done"),)
    assert world.order(EndFreeze(gateway, "done"), 6) == ((), OrderTaken(news=False))
    assert world.refusal(BOB, 6) is None


def test_all_of_it_survives_a_restart(world: Operated) -> None:
    world.order(RevokeBinding(1, None, "noise"))
    world.order(ReservePort("gw", CUSEEME.name, BOB, "his talk"))
    world.order(FreezeClaims(None, "work"))
    world.refusal(BOB, 3, service="shared", peer=REFLECTOR)
    assert world.replayed() == world.state
    assert world.replayed().bindings[1].ordered is Ending.REVOKE
    world.say(withdrawn(reason=Ending.REVOKE), 4)
    world.state = world.replayed()
    world(Start("1", "boot", None), at(5))
    assert world.refusal(BOB, 6) is ClaimRefusal.FROZEN
    world.order(EndFreeze(None, "done"), 7)
    assert world.refusal(ANN, 8) is ClaimRefusal.REVOKED
    world.order(LiftBar(ANN, None, None, "sorry"), 9)
    assert world.refusal(ANN, 9) is ClaimRefusal.RESERVED
    events, reply = world.say(claim(BOB), 9)
    assert isinstance(events[0], PortBound)
    assert isinstance(reply, ClaimGranted)
