"""Who gets a port: the first, whoever it is configured for, one for each peer; and who is refused."""

import dataclasses
from typing import Any

import pytest

from tests.unit.tracker.core import World, withdrawn
from tests.unit.tracker.wire import (
    ANN,
    BOB,
    CUSEEME,
    OTHER_PUBLIC,
    PUBLIC,
    REFLECTOR,
    at,
    claim,
    opening,
)
from tracker.claims import OTHER_HOSTS, REFUSED_HOSTS_LIMIT
from tracker.events import (
    Ending,
    Policy,
    PortBound,
    PortRefused,
    PortUnbound,
    RefusalsEnded,
)
from tracker.messages import (
    ClaimGranted,
    ClaimRefusal,
    ClaimRefused,
    ReplyBody,
    WithdrawBinding,
)
from tracker.orders import (
    FreezeClaims,
)
from tracker.ownership import (
    FromOperator,
)


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
