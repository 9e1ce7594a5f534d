"""Who may say what: by role, under which name, for which gateway."""

import pytest

from tests.unit.tracker.wire import ANN, OPERATOR, READER, WORKER, claim, opening
from tracker.events import HolderNamed
from tracker.messages import (
    REQUEST_KINDS,
    Body,
    GetCheckpoint,
    GetStatus,
    Heartbeat,
    MakeCheckpoint,
    NotAllowed,
    Reply,
    Request,
    encode_reply,
)
from tracker.roles import MAY_SAY, Caller, Objection, Role, refusal

REMOTE = Caller(Role.WORKER, "w1", frozenset({"gw", "gw2"}), "public key")


def said(body: Body, worker: str = "w1") -> Request:
    return Request(worker, 7, 0 if isinstance(body, Heartbeat | GetStatus) else 1, 0, 0, 5, body)


def test_every_kind_of_message_has_its_roles() -> None:
    assert set(MAY_SAY) == set(REQUEST_KINDS.values())
    assert all(MAY_SAY.values())


@pytest.mark.parametrize(
    ("caller", "allowed"),
    [
        (
            WORKER,
            {opening(), claim(ANN), Heartbeat("gw", 1, 1), HolderNamed("gw", 1, 1, "Ann"), GetCheckpoint(0)},
        ),
        (READER, {GetStatus(), GetCheckpoint(0)}),
        (OPERATOR, {GetStatus(), GetCheckpoint(0), MakeCheckpoint()}),
    ],
)
def test_a_role_says_what_is_its_own_and_nothing_else(caller: Caller, allowed: set[Body]) -> None:
    bodies: set[Body] = {
        opening(),
        claim(ANN),
        Heartbeat("gw", 1, 1),
        HolderNamed("gw", 1, 1, "Ann"),
        GetCheckpoint(0),
        GetStatus(),
        MakeCheckpoint(),
    }
    for body in bodies:
        refused = refusal(caller, said(body))
        assert (refused is None) == (body in allowed), body
        assert refused is None or refused.objection is Objection.ROLE


def test_a_key_speaks_under_its_own_name() -> None:
    assert refusal(REMOTE, said(opening())) is None
    refused = refusal(REMOTE, said(opening(), "w2"))
    assert refused is not None
    assert refused.objection is Objection.NAME


def test_a_local_worker_has_any_name_but_that_of_a_key() -> None:
    local = Caller(Role.WORKER, "unix:0", taken=frozenset({"w1"}))
    assert refusal(local, said(opening(), "w2")) is None
    refused = refusal(local, said(opening()))
    assert refused is not None
    assert refused.objection is Objection.NAME


@pytest.mark.parametrize("body", [opening("gw3"), claim(ANN, gateway="gw3"), Heartbeat("gw3", 1, 1)])
def test_a_key_speaks_for_its_own_gateways(body: Body) -> None:
    refused = refusal(REMOTE, said(body))
    assert refused is not None
    assert (refused.objection, refused.reason) == (Objection.GATEWAY, "w1 speaks for gw, gw2, not for gw3")


def test_every_refusal_fits_into_its_answer() -> None:
    longest = "x" * 64
    many = frozenset(f"{number:064}" for number in range(20))
    caller = Caller(Role.WORKER, longest, many, "key")
    for request in (said(opening(longest), longest), said(opening(), "y" * 64), said(GetStatus(), longest)):
        refused = refusal(caller, request)
        assert refused is not None
        encode_reply(Reply(7, 1, NotAllowed(refused.reason)))
