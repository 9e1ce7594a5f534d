"""Orders and questions of operators in the machine: who is answered, when, and who may ask."""

import dataclasses
from typing import Any

from tests.unit.tracker.talk import Talk
from tests.unit.tracker.wire import (
    ANN,
    BOB,
    OPERATOR,
    READER,
    WORKER,
    at,
    claim,
    operator,
)
from tracker.events import (
    BindingWithdrawn,
    ClaimsFrozen,
    Ending,
    Restraint,
)
from tracker.messages import (
    Acknowledged,
    Body,
    FindPort,
    GetStatus,
    Heartbeat,
    NotAllowed,
    PortFound,
    Request,
    Status,
    WithdrawalView,
    WithdrawBinding,
    decode_reply,
    encode_request,
)
from tracker.orders import FreezeClaims, LiftBar, ReleaseBinding, RevokeBinding, Withdrawing, Withdrawn


def frames_by_peer(talk: Talk) -> list[tuple[object, object]]:
    batch = talk.machine.take()
    talk.disk.append(batch)
    return [(peer, decode_reply(frame).body) for peer, frame in batch.frames]


def order_from(talk: Talk, order: Body, seconds: float = 2) -> list[tuple[object, object]]:
    request = Request("olga", 0, 0, 0, 0, 5, order)
    talk.machine.receive("operator", encode_request(request), at(seconds), operator("olga"))
    return frames_by_peer(talk)


def test_an_operator_hears_at_once_that_the_worker_is_told_and_later_that_it_is_done(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    order = WithdrawBinding("gw", 1, Ending.RELEASE)
    assert order_from(talk, ReleaseBinding(1, "lunch")) == [
        ("operator", Withdrawing(1, "w1", lost=False)),
        ("peer", order),
    ]
    talk.machine.receive(
        "peer", encode_request(Request("w1", 7, 0, 2, 0, 5, Heartbeat("gw", 1, 1))), at(3), WORKER
    )
    assert [body for _, body in frames_by_peer(talk)][1:] == [order]
    done = BindingWithdrawn("gw", 1, 1, Ending.RELEASE, at(3).wall_ns, None, 3, 400, 2)
    talk.machine.receive("peer", encode_request(Request("w1", 7, 3, 2, 0, 5, done)), at(3), WORKER)
    assert set(frames_by_peer(talk)) == {
        ("peer", Acknowledged()),
        ("operator", Withdrawn(1, Ending.RELEASE, at(3).wall_ns)),
    }


def test_a_worker_is_told_of_an_order_from_before_the_restart_when_it_is_heard(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    order_from(talk, ReleaseBinding(1, "lunch"))
    talk.restart(3)
    assert order_from(talk, ReleaseBinding(1, "lunch"), 3) == [("operator", Withdrawing(1, "w1", lost=False))]
    (_, order) = talk.say(Heartbeat("gw", 1, 1), 0, 4)
    assert order.body == WithdrawBinding("gw", 1, Ending.RELEASE)


def test_a_port_is_found_by_number_port_service_host_and_gateway(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    anything = FindPort(None, None, None, None, None, None)

    def found(**wanted: Any) -> tuple[list[str], list[int]]:
        ((_, body),) = order_from(talk, dataclasses.replace(anything, **wanted))
        assert isinstance(body, PortFound)
        return [place.service for place in body.places], [view.binding for view in body.bindings]

    assert found() == (["cuseeme", "shared"], [1])
    assert found(binding=1)[1] == found(port=7648)[1] == found(port=7649, protocol=6)[1] == [1]
    assert found(binding=2)[1] == found(holder=BOB)[1] == []
    assert found(port=7649, protocol=1) == found(port=80) == found(gateway="gw2") == ([], [])
    assert found(service="shared") == (["shared"], [])


def test_a_status_shows_restrictions_and_what_is_being_ended(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    order_from(talk, RevokeBinding(1, 60_000, "noise"))
    (reply,) = talk.say(GetStatus(), 0)
    assert isinstance(reply.body, Status)
    (restriction,) = reply.body.restrictions
    assert (restriction.restraint, restriction.host, restriction.by) == (Restraint.REVOKED, ANN, "olga")
    assert restriction.until_ns == at(62).wall_ns
    assert reply.body.withdrawals == (WithdrawalView(1, Ending.REVOKE),)


def test_a_command_that_repeats_its_order_bars_nobody_whose_bar_was_lifted(talk: Talk) -> None:
    talk.say(claim(ANN), 2)
    for order in (RevokeBinding(1, None, "noise"), LiftBar(ANN, None, None, "sorry")):
        order_from(talk, order, 3)
    size = len(talk.disk.events())
    order_from(talk, RevokeBinding(1, None, "noise"), 4)
    assert len(talk.disk.events()) == size


def test_a_reader_gives_no_orders(talk: Talk) -> None:
    frame = encode_request(Request("olga", 0, 0, 0, 0, 5, ReleaseBinding(1, "lunch")))
    talk.machine.receive("reader", frame, at(2), READER)
    refused = NotAllowed("ReleaseBinding is for operator, unix:1000 is reader")
    assert frames_by_peer(talk) == [("reader", refused)]
    assert talk.machine.counters["refused: role"] == 1


def test_a_local_operator_is_named_by_what_he_says_and_by_who_he_is(talk: Talk) -> None:
    frame = encode_request(Request("olga", 0, 0, 0, 0, 5, FreezeClaims(None, "work")))
    talk.machine.receive("operator", frame, at(2), OPERATOR)
    frames_by_peer(talk)
    assert talk.disk.events()[-1] == ClaimsFrozen(None, "olga (unix:0)", "work")
