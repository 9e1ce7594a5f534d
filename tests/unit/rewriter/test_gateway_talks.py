"""The gateway's machine and OpenContinues: translated, learned from, hung up; and how a binding ends."""

import pytest

from rewriter.cuseeme import Direction, Message
from rewriter.effects import (
    Action,
    Carried,
    CheckPeers,
    Purge,
    Send,
    Settle,
    Submit,
    Verdict,
    Withdraw,
)
from rewriter.gateway import Gateway
from rewriter.packet import Endpoint
from tests.unit.rewriter.playbook import (
    ANN,
    DIAL,
    HANG_UP,
    HEARD,
    OTHER_PEER,
    PEER,
    PUBLIC,
    SETTINGS,
    Playbook,
    adopted,
    answers,
    claim,
    claims,
    element,
    grant,
    in_session,
    installed,
    moment,
    open_continue,
    opening,
    opens,
    peers_seen,
    session,
    talks,
    timer,
    translated,
    view,
    went,
    withdrawn,
)
from tracker.events import (
    Ending,
    HolderNamed,
)
from tracker.messages import (
    Heartbeat,
    WithdrawBinding,
)

# --- OpenContinues ----------------------------------------------------------------------------------------


def test_an_open_continue_is_translated_both_ways() -> None:
    play = in_session((1, ANN))
    inside, outside = Endpoint(ANN.packed, 7648), Endpoint(PUBLIC.packed, 7648)
    out = translated(DIAL, Direction.OUT, outside, inside)
    assert out != DIAL.payload
    (play >> talks(1, DIAL) << Verdict(1, Action.ACCEPT, out)).settled()
    back = open_continue(PEER, ANN, header_address=PEER)
    into = translated(back, Direction.IN, outside, inside)
    (play >> talks(2, back) << Verdict(2, Action.ACCEPT, into)).settled()


def test_a_caller_from_another_port_is_translated_too() -> None:
    play = in_session((1, ANN))
    call = open_continue(PEER, ANN, ports=(40_000, 7648))
    play.run(talks(1, call))
    assert "talks_after_unbinding" not in play.gateway.counters


def test_what_waits_in_the_queue_of_somebody_who_holds_no_longer_is_dropped() -> None:
    play = in_session((1, ANN)).run(answers(None, WithdrawBinding("gw", 1, Ending.RELEASE)), withdrawn(1))
    (play >> talks(1, DIAL) << Verdict(1, Action.DROP)).settled()
    (play >> talks(2, open_continue(PEER, ANN)) << Verdict(2, Action.DROP)).settled()


def test_an_open_continue_that_can_not_be_read_goes_on() -> None:
    (in_session((1, ANN)) >> talks(1, None) << Verdict(1, Action.ACCEPT)).settled()


def test_a_new_name_is_reported_once_and_not_more_than_once_a_minute() -> None:
    play = in_session((1, ANN))
    named = Submit(HolderNamed("gw", 1, 1, "Ann"))
    play.run(HEARD)
    assert named in list(talks(1, open_continue(ANN, PEER, name="Ann"))(play.gateway, play.now))
    for packet, (seconds, name, reported) in enumerate(
        [(1, "Ann", False), (2, "Eve", False), (59, "Mallory", False), (61, "Mallory", True)], start=2
    ):
        play.at(seconds).run(HEARD)
        effects = list(talks(packet, open_continue(ANN, PEER, name=name))(play.gateway, play.now))
        assert (Submit(HolderNamed("gw", 1, 1, name)) in effects) is reported, name


def test_a_name_is_kept_for_later_while_the_tracker_is_silent() -> None:
    play = in_session((1, ANN)).at(10)
    called = open_continue(ANN, PEER, name="Ann")
    assert len(list(talks(1, called)(play.gateway, play.now))) == 1
    play.run(HEARD)
    assert len(list(talks(2, called)(play.gateway, play.now))) == 2


def test_of_two_services_of_one_host_the_packets_ports_tell_which() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC))
    views = (view(1, ANN, service="chat"), view(2, ANN))
    play.run(opens, answers(opening(), session(1, *views)), adopted(1, 1, 2), timer, talks(1, HANG_UP))
    (play.at(0.03) >> timer << CheckPeers(2, element(ANN))).settled()


# --- hanging up -------------------------------------------------------------------------------------------


def hung_up() -> Playbook:
    """A call that Ann ended a moment ago."""
    return in_session((1, ANN)).run(talks(1, DIAL)).at(0.1).run(talks(2, HANG_UP))


def test_a_hang_up_ends_the_binding_when_no_other_peer_is_live() -> None:
    play = hung_up().at(0.129)
    (play >> timer).settled()
    assert play.gateway.next_deadline_ns() == moment(0.13).monotonic_ns
    (
        play.at(0.13)
        >> timer
        << CheckPeers(1, element(ANN))
        >> peers_seen(1, PEER)  # conntrack still knows the one that was hung up on
        << Withdraw(1, element(ANN), Ending.HANG_UP)
        >> withdrawn(1, Carried(10, 2_000, 3))
        << Submit(went(1, Ending.HANG_UP, 0.13, last_s=0, packets=10, octets=2_000, callers=3))
    ).settled()


def test_a_hang_up_that_comes_three_times_ends_the_binding_once() -> None:
    play = hung_up().run(talks(3, HANG_UP), talks(4, HANG_UP)).at(0.2)
    (play >> timer << CheckPeers(1, element(ANN))).settled()
    (play >> timer).settled()


def test_another_live_peer_keeps_the_binding_until_it_is_hung_up_on_too() -> None:
    play = hung_up().at(0.2).run(timer)
    (play >> peers_seen(1, PEER, OTHER_PEER)).settled()
    play.at(5).run(talks(3, open_continue(ANN, OTHER_PEER, message=Message.CLOSE))).at(5.03).run(timer)
    (play >> peers_seen(1, PEER, OTHER_PEER) << Withdraw(1, element(ANN), Ending.HANG_UP)).settled()


def test_a_peer_that_is_being_called_and_has_not_answered_keeps_the_binding() -> None:
    play = hung_up().run(talks(3, open_continue(ANN, OTHER_PEER))).at(0.2).run(timer)
    (play >> peers_seen(1, PEER)).settled()
    play.at(7).run(talks(4, HANG_UP)).at(7.03).run(timer)  # that one was given up long ago
    (play >> peers_seen(1) << Withdraw(1, element(ANN), Ending.HANG_UP)).settled()


def test_a_redial_within_the_linger_keeps_the_binding() -> None:
    play = hung_up().at(0.11).run(talks(3, DIAL)).at(0.2)
    (play >> timer << CheckPeers(1, element(ANN)) >> peers_seen(1, PEER)).settled()


def test_a_hang_up_by_the_peer_ends_nothing() -> None:
    play = in_session((1, ANN)).run(talks(1, open_continue(PEER, ANN, message=Message.CLOSE))).at(0.5)
    (play >> timer).settled()


def test_a_hang_up_of_a_binding_that_is_gone_is_forgotten() -> None:
    play = hung_up().run(answers(None, WithdrawBinding("gw", 1, Ending.REVOKE)), withdrawn(1)).at(0.5)
    (play >> timer >> peers_seen(1)).settled()


def test_a_hang_up_on_another_peer_leaves_the_call_that_the_claim_was_for() -> None:
    play = in_session().run(claims(1, ANN), answers(claim(ANN), grant(1, ANN)), installed(1))
    other = open_continue(ANN, OTHER_PEER, message=Message.CLOSE)
    play.run(talks(2, other)).at(0.05).run(timer)
    (play >> peers_seen(1)).settled()


def test_a_host_that_hangs_up_on_thousands_does_not_make_memory_grow() -> None:
    play = in_session((1, ANN))
    for number in range(2_000):
        peer = PEER + number
        play.run(talks(number, open_continue(ANN, peer)), talks(number, open_continue(ANN, peer, message=6)))
    held = play.gateway.binding_of("cuseeme", ANN)
    assert held is not None
    play.run(peers_seen(1, PEER, PEER + 5_000))
    assert held.hung_up == {PEER}
    for number in range(2_000):
        play.at(number / 50).run(talks(number, open_continue(ANN, PEER + number)))
    assert len(held.dialled) <= 600


# --- unbinding --------------------------------------------------------------------------------------------


def test_an_order_is_carried_out_before_it_is_reported() -> None:
    play = in_session((1, ANN))
    order = answers(None, WithdrawBinding("gw", 1, Ending.REVOKE))
    (
        play
        >> order
        << Withdraw(1, element(ANN), Ending.REVOKE)
        >> order
        >> withdrawn(1)
        << Submit(went(1, Ending.REVOKE, last_s=0))
        >> order
    ).settled()


def test_an_order_for_a_grant_not_heard_of_is_reported_and_its_grant_not_installed() -> None:
    play = in_session().run(claims(1, ANN))
    (
        play
        >> answers(None, WithdrawBinding("gw", 7, Ending.REVOKE))
        << Submit(went(7, Ending.REVOKE))
        >> answers(claim(ANN), grant(7, ANN))
        << Settle("cuseeme", ANN)
        << Verdict(1, Action.DROP)
    ).settled()


def test_connections_are_deleted_again_a_second_after_unbinding() -> None:
    play = in_session((1, ANN)).run(answers(None, WithdrawBinding("gw", 1, Ending.REVOKE)), withdrawn(1))
    play.at(0.99).run(timer)
    assert play.gateway.next_deadline_ns() == moment(1).monotonic_ns
    (play.at(1) >> timer << Purge(element(ANN)) << Send(Heartbeat("gw", 1, 2))).settled()


def test_the_second_deletion_leaves_a_host_alone_that_holds_again() -> None:
    play = in_session((1, ANN)).run(answers(None, WithdrawBinding("gw", 1, Ending.REVOKE)), withdrawn(1))
    play.run(claims(1, ANN), answers(claim(ANN), grant(2, ANN)), installed(2))
    (play.at(1) >> timer << Send(Heartbeat("gw", 1, 2))).settled()


def test_an_outcome_nobody_asked_for_is_a_broken_invariant() -> None:
    play = in_session((1, ANN))
    with pytest.raises(ValueError, match="unasked"):
        play.run(withdrawn(1))
