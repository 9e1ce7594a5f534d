"""The gateway's machine, as playbooks: `play >> event << effect << effect`."""

from dataclasses import replace

import pytest

from rewriter import cuseeme
from rewriter.cuseeme import Direction, Message
from rewriter.effects import (
    Action,
    Adopt,
    Carried,
    CheckPeers,
    EndLease,
    Install,
    KernelView,
    Offer,
    Purge,
    Refuse,
    RemoveStray,
    Renew,
    Restore,
    Send,
    Settle,
    Stop,
    Submit,
    Verdict,
    Withdraw,
)
from rewriter.gateway import Gateway, Settings
from rewriter.packet import Endpoint, UdpPacket
from rewriter.vocabulary import Element
from tests.unit.rewriter.playbook import (
    ANN,
    BOB,
    IDLE_S,
    NEW_PUBLIC,
    OTHER_PEER,
    PEER,
    PUBLIC,
    SECOND_NS,
    SETTINGS,
    Playbook,
    adopted,
    answers,
    came,
    claim,
    claims,
    closes,
    element,
    flow,
    grant,
    in_session,
    install_failed,
    installed,
    kernel,
    moment,
    not_submitted,
    open_continue,
    opening,
    opens,
    outbox,
    peers_seen,
    restored,
    sees,
    session,
    talks,
    timer,
    view,
    went,
    withdrawn,
)
from tracker.events import (
    Ending,
    HolderNamed,
    KernelStateRestored,
    OutboxFilled,
    PublicAddressChanged,
    QueueOverflowed,
    SessionEnding,
)
from tracker.messages import (
    Acknowledged,
    ClaimRefusal,
    ClaimRefused,
    CloseSession,
    Heartbeat,
    HeartbeatAcknowledged,
    ResendFrom,
    SessionDenied,
    SessionOver,
    WithdrawBinding,
)

HELD_BY_OTHER = ClaimRefused(ClaimRefusal.HELD, BOB.packed, 9)
DENIED = SessionDenied("gw", "w2", "other/boot", 5_000)
HANG_UP = open_continue(ANN, PEER, message=Message.CLOSE)
DIAL = open_continue(ANN, PEER)


def over(epoch: int = 1, reason: SessionEnding | None = None) -> SessionOver:
    return SessionOver("gw", epoch, reason)


def translated(udp: UdpPacket, direction: Direction, public: Endpoint, private: Endpoint) -> bytes:
    return cuseeme.translate(udp.payload, direction, public, private)


def with_left(left_s: float) -> Element:
    return replace(element(ANN), left_s=left_s)


HEARD = answers(None, HeartbeatAcknowledged("gw", 1, 1, 10_000))


# --- claims -----------------------------------------------------------------------------------------------


def test_a_granted_claim_is_installed_then_let_go_then_reported() -> None:
    (
        (in_session().at(0.5) >> claims(1, ANN) << Submit(claim(ANN, 0.5)))
        >> answers(claim(ANN, 0.5), grant(7, ANN))
        << Install(7, element(ANN))
        >> installed(7)
        << Verdict(1, Action.ACCEPT)
        << Submit(came(7, 0.5))
    ).settled()


def test_a_refused_claim_is_answered_by_the_kernel_for_a_while() -> None:
    (
        (in_session() >> claims(1, ANN) << Submit(claim(ANN)))
        >> answers(claim(ANN), HELD_BY_OTHER)
        << Refuse("cuseeme", ANN)
        << Verdict(1, Action.REFUSE)
    ).settled()


def test_a_refusal_for_a_binding_that_has_ended_meanwhile_lets_its_host_ask_again_at_once() -> None:
    play = in_session((1, BOB)).run(claims(1, ANN))
    play = play.run(answers(None, WithdrawBinding("gw", 1, Ending.REVOKE)), withdrawn(1))
    (
        play
        >> answers(claim(ANN), ClaimRefused(ClaimRefusal.HELD, BOB.packed, 1))
        << Settle("cuseeme", ANN)
        << Verdict(1, Action.REFUSE)
    ).settled()


def test_while_a_claim_waits_the_hosts_other_packets_are_dropped() -> None:
    play = in_session().run(claims(1, ANN))
    (play >> claims(2, ANN) << Verdict(2, Action.DROP)).settled()
    (play >> claims(3, BOB) << Submit(claim(BOB))).settled()
    (play >> claims(4, ANN, port=9000) << Submit(claim(ANN, port=9000))).settled()


def test_a_claim_without_a_session_is_refused_at_once() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    (play >> claims(1, ANN) << Refuse("cuseeme", ANN) << Verdict(1, Action.REFUSE)).settled()


def test_a_claim_without_a_public_address_is_refused_at_once() -> None:
    play = in_session().run(sees(kernel(public=None)))
    (play >> claims(1, ANN) << Refuse("cuseeme", ANN) << Verdict(1, Action.REFUSE)).settled()


def test_a_claim_is_refused_at_once_when_the_tracker_has_been_silent_for_three_seconds() -> None:
    play = in_session()
    (play.at(2.9) >> claims(1, ANN) << Submit(claim(ANN, 2.9))).settled()
    (play.at(3.1) >> claims(2, BOB) << Refuse("cuseeme", BOB) << Verdict(2, Action.REFUSE)).settled()
    play.run(HEARD)
    (play >> claims(3, BOB) << Submit(claim(BOB, 3.1))).settled()


def test_an_outbox_without_room_for_claims_is_one_record_once_it_is_far_from_full_again() -> None:
    full, filling = outbox(room=False, drained=False), outbox(room=True, drained=False)
    empty = outbox(room=True, drained=True)
    play = in_session().run(outbox(room=True, drained=True)).at(1).run(full)
    play = play.run(claims(1, ANN, room=False)).run(claims(2, BOB, room=False))
    said = OutboxFilled("gw", 1, moment(1).wall_ns, 2, moment(3).wall_ns)
    (play.at(2).run(filling, full, filling).at(3) >> empty << Submit(said)).run(empty).settled()
    assert (play.gateway.counters["claims_without_room"], play.gateway.counters["claims"]) == (2, 2)


def test_a_claim_that_finds_no_room_in_the_outbox_is_refused() -> None:
    play = in_session()
    refused = play >> claims(1, ANN, room=False) << Refuse("cuseeme", ANN) << Verdict(1, Action.REFUSE)
    refused >> claims(2, BOB) << Submit(claim(BOB))  # what the disk then does not take
    refused >> not_submitted(claim(BOB)) << Refuse("cuseeme", BOB) << Verdict(2, Action.REFUSE)
    (refused >> claims(3, BOB) << Submit(claim(BOB))).settled()


def test_a_holders_packet_in_the_claim_queue_goes_on() -> None:
    play = in_session((1, ANN))
    (play >> claims(1, ANN) << Settle("cuseeme", ANN) << Verdict(1, Action.ACCEPT)).settled()


def test_what_is_no_claim_of_a_service_goes_on_to_the_fence_and_holds_up_no_honest_claim() -> None:
    play = in_session()
    (
        play
        >> claims(1, ANN, port=53)
        << Settle("cuseeme", ANN)
        << Settle("chat", ANN)
        << Verdict(1, Action.ACCEPT)
    ).settled()
    icmp = flow(ANN, protocol=1)
    play = play.at(0.1)
    (
        play
        >> (lambda g, now: g.receive_claim(2, icmp, None, now))
        << Settle("cuseeme", ANN)
        << Settle("chat", ANN)
    )
    (play << Verdict(2, Action.ACCEPT)).settled()
    play = play.at(0.2)
    (
        play
        >> (lambda g, now: g.receive_unreadable(3, ANN.packed, now))
        << Settle("cuseeme", ANN)
        << Settle("chat", ANN)
    )
    (play << Verdict(3, Action.ACCEPT)).settled()
    play = play.at(0.3)
    (play >> (lambda g, now: g.receive_unreadable(4, None, now)) << Verdict(4, Action.ACCEPT)).settled()
    assert play.gateway.counters["claims_unparsed"] == 4


def test_a_flood_of_unreadable_packets_is_not_let_in_one_by_one() -> None:
    play = in_session()
    (
        play
        >> (lambda g, now: g.receive_unreadable(1, ANN.packed, now))
        << Settle("cuseeme", ANN)
        << Settle("chat", ANN)
    )
    (play << Verdict(1, Action.ACCEPT)).settled()
    play = play.at(0.09)
    (play >> (lambda g, now: g.receive_unreadable(2, ANN.packed, now)) << Verdict(2, Action.ACCEPT)).settled()


def test_an_unanswered_claim_is_given_up_after_its_time_out() -> None:
    play = in_session().run(claims(1, ANN)).at(0.99).run(timer)
    (play.at(1.0) >> timer << Refuse("cuseeme", ANN) << Verdict(1, Action.REFUSE)
     << Send(Heartbeat("gw", 1, 2))).settled()  # fmt: skip


def test_the_timer_wants_to_be_called_when_the_claim_runs_out() -> None:
    play = in_session().at(0.25).run(timer)
    assert play.gateway.next_deadline_ns() == moment(1.0).monotonic_ns  # the tick
    play.run(claims(1, ANN)).at(0.3)
    assert play.gateway.next_deadline_ns() == moment(1.0).monotonic_ns
    play.at(1.0).run(timer)
    assert play.gateway.next_deadline_ns() == moment(1.25).monotonic_ns


def test_a_grant_after_the_time_out_is_installed_without_a_packet() -> None:
    play = in_session().run(claims(1, ANN)).at(1.5).run(timer)
    (play >> answers(claim(ANN), grant(7, ANN)) << Install(7, element(ANN))
     >> installed(7) << Submit(came(7, 1.5))).settled()  # fmt: skip


def test_a_grant_that_nobody_waits_for_any_more_is_given_back() -> None:
    play = in_session().run(claims(1, ANN)).at(1.0).run(timer).at(4.0).run(timer)
    (play.at(9) >> answers(claim(ANN), grant(7, ANN)) << Submit(went(7, Ending.LATE, 9))).settled()
    (play >> answers(claim(ANN), grant(7, ANN))).settled()


def test_a_late_grant_serves_the_packet_of_the_second_claim() -> None:
    play = in_session().run(claims(1, ANN)).at(1.0).run(timer).at(2.5).run(claims(2, ANN))
    (
        play
        >> answers(claim(ANN), grant(7, ANN))
        << Install(7, element(ANN))
        >> installed(7)
        << Verdict(2, Action.ACCEPT)
        << Submit(came(7, 2.5))
        >> answers(claim(ANN, 2.5), grant(7, ANN))
    ).settled()


def test_a_late_refusal_does_not_touch_the_second_claim() -> None:
    play = in_session().run(claims(1, ANN)).at(1.0).run(timer).at(2.5).run(claims(2, ANN))
    (play >> answers(claim(ANN), HELD_BY_OTHER)).settled()
    (play >> answers(claim(ANN, 2.5), grant(7, ANN)) << Install(7, element(ANN))).settled()


def test_a_late_refusal_is_still_answered_by_the_kernel() -> None:
    play = in_session().run(claims(1, ANN)).at(1.0).run(timer)
    (play >> answers(claim(ANN), HELD_BY_OTHER) << Refuse("cuseeme", ANN)).settled()


def test_a_repeated_grant_changes_nothing() -> None:
    play = in_session().run(claims(1, ANN), answers(claim(ANN), grant(7, ANN)), installed(7))
    (play >> answers(claim(ANN), grant(7, ANN))).settled()


def test_a_grant_of_what_was_withdrawn_meanwhile_is_never_installed() -> None:
    play = in_session((7, ANN)).run(answers(None, WithdrawBinding("gw", 7, Ending.REVOKE)), withdrawn(7))
    play.run(claims(1, ANN))
    # The host may ask again at once: its next claim stands behind the withdrawal in the outbox.
    (
        play >> answers(claim(ANN), grant(7, ANN)) << Settle("cuseeme", ANN) << Verdict(1, Action.DROP)
    ).settled()
    (play >> claims(2, ANN) << Submit(claim(ANN))).settled()


def test_a_grant_for_an_address_that_has_changed_meanwhile_is_given_back() -> None:
    play = in_session().run(claims(1, ANN), sees(kernel(public=NEW_PUBLIC)))
    (
        play
        >> answers(claim(ANN), grant(7, ANN))
        << Submit(went(7, Ending.ADDRESS_CHANGED))
        << Settle("cuseeme", ANN)
        << Verdict(1, Action.DROP)
        >> claims(2, ANN)
        << Submit(claim(ANN, public=NEW_PUBLIC))
    ).settled()


def test_an_installation_that_fails_gives_the_port_back() -> None:
    play = in_session().run(claims(1, ANN), answers(claim(ANN), grant(7, ANN)))
    (
        play
        >> install_failed(7)
        << Refuse("cuseeme", ANN)
        << Verdict(1, Action.REFUSE)
        << Withdraw(7, element(ANN), Ending.LOST)
        >> withdrawn(7)
        << Submit(went(7, Ending.LOST))
    ).settled()


def test_answers_to_a_process_before_this_one_install_nothing() -> None:
    play = in_session()
    (
        play
        >> answers(claim(ANN), grant(7, ANN), inherited=True)
        >> answers(claim(ANN), HELD_BY_OTHER, inherited=True)
        >> answers(opening(), session(9, view(7, ANN)), inherited=True)
        >> answers(opening(), DENIED, inherited=True)
    ).settled()


def test_answers_that_make_no_sense_are_counted() -> None:
    play = in_session()
    (play >> answers(None, ResendFrom(1)) >> answers(None, Acknowledged())).settled()
    assert play.gateway.counters["answers_unexpected"] == 1


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


# --- the kernel as seen -----------------------------------------------------------------------------------


def test_a_kernel_that_is_as_it_should_be_gives_no_work() -> None:
    (in_session((1, ANN)).at(1) >> sees(kernel(element(ANN), left_s=299))).settled()


def test_an_element_that_ran_out_ends_the_binding_at_its_last_packet() -> None:
    play = in_session((1, ANN))
    play.at(10).run(sees(kernel(element(ANN), left_s=299)))  # a packet went out a second before
    play.at(308.5).run(sees(kernel(element(ANN), left_s=0)))
    (
        play.at(309.5)
        >> sees(kernel())
        << Withdraw(1, element(ANN), Ending.IDLE)
        >> withdrawn(1)
        << Submit(went(1, Ending.IDLE, 309.5, last_s=9))
    ).settled()


def test_the_last_packet_is_never_told_later_than_it_was() -> None:
    play = in_session((1, ANN))
    # True expiry 310.9: last packet at 10.9; the kernel tells whole seconds, rounded down.
    for seconds in (11, 11.5, 12.2, 100.7, 300.1):
        play.at(seconds).run(sees(kernel(element(ANN), left_s=float(int(310.9 - seconds)))))
    play.at(311).run(sees(kernel()))
    (play >> withdrawn(1) << Submit(went(1, Ending.IDLE, 311, last_s=10.7))).settled()


def test_an_idle_time_longer_than_the_configured_one_puts_no_packet_into_the_future() -> None:
    play = in_session((1, ANN)).run(sees(kernel(element(ANN), left_s=900)))  # it was shortened since
    order = answers(None, WithdrawBinding("gw", 1, Ending.REVOKE))
    (play >> order << Withdraw(1, element(ANN), Ending.REVOKE)
     >> withdrawn(1) << Submit(went(1, Ending.REVOKE, last_s=0))).settled()  # fmt: skip


def test_a_binding_that_ended_before_it_was_seen_knows_the_packet_that_claimed_it() -> None:
    play = in_session().at(0.5).run(claims(1, ANN), answers(claim(ANN, 0.5), grant(7, ANN)), installed(7))
    (play.at(400) >> sees(kernel()) << Withdraw(7, element(ANN), Ending.IDLE)
     >> withdrawn(7) << Submit(went(7, Ending.IDLE, 400, last_s=0.5))).settled()  # fmt: skip


def test_a_binding_installed_for_no_packet_has_no_last_packet_until_one_leaves() -> None:
    play = in_session().run(claims(1, ANN)).at(1).run(timer, answers(claim(ANN), grant(7, ANN)), installed(7))
    play.at(2).run(sees(kernel(element(ANN), left_s=298)))
    order = answers(None, WithdrawBinding("gw", 7, Ending.REVOKE))
    (play >> order << Withdraw(7, element(ANN), Ending.REVOKE) >> withdrawn(7)
     << Submit(went(7, Ending.REVOKE, 2))).settled()  # fmt: skip


def test_the_last_packets_time_follows_a_clock_that_was_put_back() -> None:
    play = in_session((1, ANN)).at(10).run(sees(kernel(element(ANN), left_s=300)))
    later = moment(311)
    play.now = later._replace(wall_ns=later.wall_ns - 3_600 * 10**9)
    play.run(sees(kernel()))
    (submit,) = list(withdrawn(1)(play.gateway, play.now))
    assert isinstance(submit, Submit)
    assert submit.message.last_packet_ns == play.now.wall_ns - 301 * 10**9  # type: ignore[union-attr]


def test_a_flushed_table_comes_back_with_its_bindings_and_the_hole_is_reported() -> None:
    play = in_session((1, ANN)).at(1).run(sees(kernel(element(ANN), left_s=250)))
    hole = KernelStateRestored("gw", 1, "table", moment(1).wall_ns, moment(2).wall_ns)
    (
        play.at(2)
        >> sees(kernel(epoch=None))
        << Restore("table", (with_left(299),))
        >> restored("table")
        << Submit(hole)
    ).settled()


def test_missing_queue_rules_come_back_without_touching_the_bindings() -> None:
    play = in_session((1, ANN)).at(1)
    hole = KernelStateRestored("gw", 1, "queue rules", moment(0).wall_ns, moment(1).wall_ns)
    view_ = kernel(element(ANN), left_s=299, queueing=False)
    (play >> sees(view_) << Restore("queue rules", ()) >> restored("queue rules") << Submit(hole)).settled()


WHOLE = kernel(element(ANN), left_s=300)


@pytest.mark.parametrize(
    "broken",
    [replace(WHOLE, holders={}), replace(WHOLE, inbound={}), replace(WHOLE, outbound={})],
    ids=["holders", "inbound", "outbound"],
)
def test_an_element_that_vanished_before_its_time_comes_back(broken: KernelView) -> None:
    play = in_session((1, ANN)).at(1)
    hole = KernelStateRestored("gw", 1, "elements", moment(0).wall_ns, moment(1).wall_ns)
    effects = list(sees(broken)(play.gateway, play.now))
    assert [type(effect) for effect in effects] == [Restore]
    assert isinstance(effects[0], Restore)
    assert [replace(one, left_s=None) for one in effects[0].elements] == [element(ANN)]
    (play >> restored("elements") << Submit(hole)).settled()


def test_an_inbound_element_that_runs_out_a_moment_before_its_holder_is_no_hole() -> None:
    play = in_session((1, ANN))
    (play.at(299.9) >> sees(replace(kernel(element(ANN), left_s=0), inbound={}))).settled()


def test_an_inbound_element_that_leads_elsewhere_is_taken_out_first() -> None:
    play = in_session((1, ANN)).at(1)
    wrong = replace(kernel(element(ANN), left_s=299), inbound={("cuseeme", PUBLIC): BOB})
    (play >> sees(wrong) << RemoveStray("cuseeme", None, PUBLIC)
     << Restore("elements", (with_left(299),))).settled()  # fmt: skip


def test_what_no_binding_stands_behind_is_removed() -> None:
    play = in_session((1, ANN)).at(1)
    stray = kernel(element(ANN), element(BOB, public=NEW_PUBLIC), left_s=299)
    (
        play >> sees(stray) << RemoveStray("cuseeme", BOB, None) << RemoveStray("cuseeme", None, NEW_PUBLIC)
    ).settled()


def test_another_epoch_in_the_kernel_stops_the_worker() -> None:
    reason = "the kernel's table is of epoch 2, ours is 1: taken over"
    (in_session((1, ANN)) >> sees(kernel(epoch=2)) << Stop(reason)).settled()


def test_a_changed_address_ends_the_bindings_on_the_old_one_and_is_said() -> None:
    change = PublicAddressChanged("gw", 1, PUBLIC.packed, NEW_PUBLIC.packed, moment(1).wall_ns)
    (
        in_session((1, ANN)).at(1)
        >> sees(kernel(element(ANN), left_s=299, public=NEW_PUBLIC))
        << Withdraw(1, element(ANN), Ending.ADDRESS_CHANGED)
        << Submit(change)
        >> withdrawn(1)
        << Submit(went(1, Ending.ADDRESS_CHANGED, 1, last_s=0))
    ).settled()


def test_what_is_being_withdrawn_is_not_brought_back() -> None:
    change = PublicAddressChanged("gw", 1, PUBLIC.packed, NEW_PUBLIC.packed, moment(1).wall_ns)
    broken = replace(kernel(element(ANN), left_s=299, public=NEW_PUBLIC), inbound={})
    play = in_session((1, ANN)).at(1)
    (play >> sees(broken) << Withdraw(1, element(ANN), Ending.ADDRESS_CHANGED) << Submit(change)).settled()
    assert play.gateway.elements() == ()
    assert play.gateway.binding_of("cuseeme", ANN) is None
    (play >> talks(1, DIAL) << Verdict(1, Action.DROP)).settled()


def test_an_address_that_came_while_the_session_was_opened_is_said_when_it_is_open() -> None:
    play = Playbook(Gateway(SETTINGS, None))
    change = PublicAddressChanged("gw", 1, None, PUBLIC.packed, moment(0).wall_ns)
    (
        play
        >> opens
        << Submit(opening(public=None))
        >> sees(kernel(epoch=0))
        >> answers(opening(public=None), session(1))
        << Adopt(1, ())
        >> adopted(1)
        << Submit(change)
        >> sees(kernel())
    ).settled()


def test_an_address_that_changes_while_the_session_is_reopened_reaches_the_new_one() -> None:
    play = in_session().run(answers(None, over()))
    (
        play
        >> sees(kernel(public=NEW_PUBLIC))
        >> answers(opening(), session(2))
        << Adopt(2, ())
        >> adopted(2)
        << Submit(PublicAddressChanged("gw", 2, PUBLIC.packed, NEW_PUBLIC.packed, moment(0).wall_ns))
    ).settled()


def test_a_full_queue_is_reported_with_how_much_was_lost() -> None:
    play = in_session().run(sees(kernel(dropped={"claims": 5})), sees(kernel(dropped={"claims": 5})))
    lost = QueueOverflowed("gw", 1, "claims", 3, moment(0).wall_ns)
    (play >> sees(kernel(dropped={"claims": 8, "talks": 0})) << Submit(lost)).settled()


def test_losses_are_added_up_while_the_tracker_is_silent() -> None:
    play = in_session()
    for seconds in range(4, 9):
        (play.at(seconds) >> sees(kernel(dropped={"claims": seconds}))).settled()
    play.run(HEARD)
    lost = QueueOverflowed("gw", 1, "claims", 9, moment(8).wall_ns)
    (play >> sees(kernel(dropped={"claims": 9})) << Submit(lost)).settled()


# --- sessions ---------------------------------------------------------------------------------------------


def test_nothing_is_reported_before_the_session_is_granted() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC))
    standing = kernel(element(ANN), epoch=4, left_s=100, dropped={"talks": 3})
    (
        play
        >> opens
        << Submit(opening())
        >> sees(standing)
        >> sees(kernel(epoch=None))
        << Restore("table", (with_left(100),))
        >> restored("table")
        >> sees(replace(standing, public=NEW_PUBLIC))
        >> answers(None, WithdrawBinding("gw", 3, Ending.REVOKE))
    ).settled()
    assert list(timer(play.gateway, play.now)) == []


def test_holes_from_before_the_session_are_reported_in_it() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens, sees(kernel(epoch=4)))
    play.at(2).run(sees(kernel(epoch=None)), restored("table")).at(3)
    hole = KernelStateRestored("gw", 5, "table", moment(0).wall_ns, moment(2).wall_ns)
    play.run(answers(opening(), session(5)))
    (play >> adopted(5) << Submit(hole)).settled()


def test_before_the_session_the_calls_that_the_kernel_holds_are_translated() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    inside, outside = Endpoint(ANN.packed, 7648), Endpoint(PUBLIC.packed, 7648)
    out = translated(DIAL, Direction.OUT, outside, inside)
    (play >> talks(1, DIAL) << Verdict(1, Action.ACCEPT)).settled()  # nothing known yet: as if we were dead
    play.run(sees(kernel(element(ANN), epoch=4)))
    (play >> talks(2, DIAL) << Verdict(2, Action.ACCEPT, out)).settled()
    play.run(talks(3, HANG_UP)).at(0.5)
    (play >> timer).settled()
    play.run(sees(kernel(epoch=4)))  # ran idle meanwhile
    (play >> talks(4, DIAL) << Verdict(4, Action.ACCEPT)).settled()


def test_a_table_that_another_worker_takes_while_we_stand_in_is_left_to_it() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens, sees(kernel(epoch=4)))
    reason = "the kernel's table is of epoch 5, ours is 4: taken over"
    (play >> sees(kernel(epoch=5, queueing=False)) << Stop(reason)).settled()


def test_a_new_worker_adopts_what_the_tracker_and_the_kernel_know() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    (
        play
        >> answers(opening(), session(5, view(1, ANN), view(2, BOB, service="chat")))
        << Adopt(5, ((1, element(ANN)), (2, element(BOB, service="chat"))))
        >> adopted(5, 1, 2)
    ).settled()
    assert play.gateway.binding_of("cuseeme", ANN) is not None


@pytest.mark.parametrize(
    ("before", "trusted_epoch", "since_s", "reason"),
    [
        (4, 1, -IDLE_S - 1, Ending.IDLE),
        (4, 1, -IDLE_S + 1, Ending.LOST),  # too young for that: it was never installed, or somebody took it
        (3, 1, -IDLE_S - 1, Ending.LOST),  # granted when this table stood no more: it was never in it
        (4, 5, -IDLE_S - 1, Ending.LOST),  # another worker's table: it may have hung up there
        (0, 1, -IDLE_S - 1, Ending.LOST),  # the machine was started anew
        (None, 1, -IDLE_S - 1, Ending.LOST),
    ],
)
@pytest.mark.parametrize("clock_ahead_s", [0, 86_400, -86_400])
def test_what_the_kernel_no_longer_holds_is_reported(
    before: int | None, trusted_epoch: int, since_s: float, reason: Ending, clock_ahead_s: int
) -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    bound = view(1, ANN, since_s=since_s + clock_ahead_s, epoch=4)
    granted = session(5, bound, trusted_epoch=trusted_epoch)
    told = replace(granted, granted_ns=granted.granted_ns + clock_ahead_s * SECOND_NS)
    play.run(answers(opening(), told))
    (play >> adopted(5, before=before) << Submit(went(1, reason, epoch=5))).settled()


def test_an_adopted_binding_on_another_address_is_withdrawn() -> None:
    play = Playbook(Gateway(SETTINGS, NEW_PUBLIC)).run(opens)
    play.run(answers(opening(public=NEW_PUBLIC), session(5, view(1, ANN))))
    (play >> adopted(5, 1) << Withdraw(1, element(ANN), Ending.ADDRESS_CHANGED)).settled()


def test_a_binding_of_a_service_that_left_the_configuration_is_ended() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    (
        play
        >> answers(opening(), session(5, view(1, ANN, service="gone", since_s=-1000)))
        << Adopt(5, ())
        >> adopted(5)
        << Submit(went(1, Ending.RECONFIGURED, epoch=5))
    ).settled()


def test_a_session_granted_to_the_process_before_is_not_ours() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    (
        play
        >> answers(opening(), session(4), inherited=True)
        >> answers(opening(), DENIED, inherited=True)
        >> answers(opening(), session(5))
        << Adopt(5, ())
    ).settled()


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, standby=True),
        replace(SETTINGS, worker="w2"),  # started anew on another host, so it seems
    ],
)
def test_who_waits_asks_again_and_at_once_when_the_lease_has_ended(settings: Settings) -> None:
    asks = opening()
    play = Playbook(Gateway(settings, PUBLIC)).run(opens).at(1)
    (play >> answers(asks, DENIED)).settled()
    (play.at(2.9) >> timer).settled()
    assert play.gateway.next_deadline_ns() == moment(3).monotonic_ns
    (play.at(3) >> timer << Submit(asks)).settled()
    (play.at(3.9) >> timer >> answers(asks, replace(DENIED, lease_left_ms=500))).settled()
    assert play.gateway.next_deadline_ns() == moment(4.4).monotonic_ns
    (play.at(4.4) >> timer << Submit(asks)).settled()
    (play.at(9) >> timer).settled()  # one question at a time


def test_a_take_over_that_has_to_wait_is_asked_for_again_and_again() -> None:
    asks = opening(take_over=True)
    play = Playbook(Gateway(replace(SETTINGS, take_over=True), PUBLIC)).run(opens)
    (play >> answers(asks, DENIED)).settled()
    (play.at(0.5) >> timer << Submit(asks)).settled()


def test_who_does_not_wait_is_told_who_has_the_gateway() -> None:
    how = "take it over with --take-over, or wait for it with standby = true"
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    (play >> answers(opening(), DENIED) << Stop(f"gateway gw is w2's on other/boot; {how}")).settled()


def test_in_a_kernel_that_never_had_them_the_bindings_of_another_host_are_made_anew() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    (
        play
        >> answers(opening(), session(5, view(1, ANN), trusted_epoch=5, moved_epoch=5))
        << Adopt(5, ((1, element(ANN)),), 5)
        >> adopted(5, 1, before=2)
        >> sees(kernel(element(ANN), epoch=5))
    ).settled()


def test_a_take_over_is_asked_for_only_once() -> None:
    play = Playbook(Gateway(replace(SETTINGS, take_over=True), PUBLIC))
    (play >> opens << Submit(opening(take_over=True))).settled()
    play.run(answers(opening(take_over=True), session(1)), adopted(1))
    (play >> answers(None, over(reason=SessionEnding.TAKE_OVER)) << Submit(opening())).settled()


def test_a_session_that_is_over_is_asked_for_again_once() -> None:
    play = in_session()
    (play >> answers(None, over()) << Submit(opening()) >> answers(None, over())).settled()


def test_the_end_of_an_older_session_is_no_news() -> None:
    (in_session(epoch=3) >> answers(None, over(2))).settled()


def test_a_worker_that_lost_its_gateway_to_another_one_stops() -> None:
    play = in_session().run(answers(None, over()))
    (play >> answers(opening(), DENIED) << Stop("gateway gw is w2's on other/boot: taken over")).settled()


def test_repeated_answers_to_the_opening_are_no_news() -> None:
    play = in_session((1, ANN))
    (play >> answers(opening(), session(1)) >> answers(opening(), DENIED)).settled()


def test_waiting_packets_are_dropped_before_the_queues_change() -> None:
    play = in_session().run(claims(1, ANN), answers(None, over()))
    (
        play >> answers(opening(), session(2)) << Verdict(1, Action.DROP) << Adopt(2, ()) >> adopted(2)
    ).settled()
    (play.at(1) >> claims(2, ANN) << Submit(claim(ANN, 1, epoch=2))).settled()


def test_a_grant_of_an_older_session_is_not_installed() -> None:
    """It was in the new session's list, or another worker has ended it since."""
    play = in_session().run(claims(1, ANN), answers(None, over()), answers(opening(), session(2)), adopted(2))
    play.run(claims(2, ANN))
    (play >> answers(claim(ANN), grant(7, ANN)) >> answers(claim(ANN), HELD_BY_OTHER)).settled()
    (play >> answers(claim(ANN, epoch=2), grant(8, ANN)) << Install(8, element(ANN))).settled()


def test_a_granted_binding_that_came_with_the_new_session_alone_is_reported_and_stays_ended() -> None:
    play = in_session().run(claims(1, ANN), answers(None, over()))
    (
        play
        >> answers(opening(), session(2, view(7, ANN)))
        << Verdict(1, Action.DROP)
        << Adopt(2, ((7, element(ANN)),))
        >> adopted(2)
        << Submit(went(7, Ending.LOST, epoch=2))
        >> answers(claim(ANN), grant(7, ANN))
    ).settled()


def test_what_was_withdrawn_while_the_session_was_reopened_is_not_adopted_but_said_again() -> None:
    """While another worker had the gateway, the tracker did not listen."""
    play = in_session((1, ANN)).run(answers(None, over()))
    (
        play.at(400)
        >> sees(kernel())
        << Withdraw(1, element(ANN), Ending.IDLE)
        >> withdrawn(1)
        << Submit(went(1, Ending.IDLE, 400, last_s=0))
        >> answers(opening(), session(2, view(1, ANN)))
        << Adopt(2, ())
        >> adopted(2)
        << Submit(went(1, Ending.IDLE, 400, last_s=0, epoch=2))
        >> answers(None, over(2))
        << Submit(opening())
        >> answers(opening(), session(3))
        << Adopt(3, ())
        >> adopted(3)
    ).settled()


def test_calls_go_on_under_the_new_epoch() -> None:
    play = in_session((1, ANN)).run(answers(None, over()))
    (
        play
        >> answers(opening(), session(2, view(1, ANN)))
        << Adopt(2, ((1, element(ANN)),))
        >> adopted(2, 1)
        >> sees(kernel(element(ANN), epoch=2))
    ).settled()


def test_a_hang_up_of_what_a_new_session_did_not_keep_is_forgotten() -> None:
    play = in_session((1, ANN)).run(talks(1, HANG_UP), answers(None, over()))
    play.run(answers(opening(), session(2, view(1, ANN))), adopted(2)).at(0.5)
    (play >> timer).settled()


def test_what_ended_in_the_tracker_leaves_with_the_old_table() -> None:
    play = in_session((1, ANN)).run(talks(1, HANG_UP), answers(None, over()))
    (play >> answers(opening(), session(2)) << Adopt(2, ()) >> adopted(2)).settled()
    assert play.gateway.elements() == ()
    (play.at(0.5) >> timer).settled()


def test_the_numbers_of_another_log_are_other_bindings() -> None:
    play = in_session((1, ANN), (2, BOB), epoch=7).run(
        talks(1, HANG_UP), answers(None, WithdrawBinding("gw", 2, Ending.REVOKE)), withdrawn(2)
    )
    play.run(answers(None, over(7)))
    (
        play
        >> answers(opening(), session(1, view(1, BOB)))
        << Adopt(1, ((1, element(BOB)),))
        >> adopted(1)
        << Submit(went(1, Ending.LOST))
    ).settled()
    play.run(claims(1, ANN))
    (play >> answers(claim(ANN), grant(2, ANN)) << Install(2, element(ANN))).settled()


def test_a_heartbeat_goes_out_each_second_of_a_session() -> None:
    play = in_session()
    (play.at(0.9) >> timer).settled()
    (play.at(1.0) >> timer << Send(Heartbeat("gw", 1, 2))).settled()
    (play.at(1.9) >> timer).settled()
    (play.at(2.5) >> timer << Send(Heartbeat("gw", 1, 3))).settled()


FENCED = replace(SETTINGS, fence=True)


def fenced() -> Playbook:
    play = Playbook(Gateway(FENCED, PUBLIC)).run(opens)
    (
        play
        >> answers(opening(fence=True), session(1))
        << Adopt(1, ())
        >> adopted(1)
        << Offer(1, 10_000)
        << Send(Heartbeat("gw", 1, 1))
    ).settled()
    return play


def test_under_fence_each_heartbeat_is_offered_first_and_its_acknowledgement_renews() -> None:
    play = fenced()
    (play >> answers(None, HeartbeatAcknowledged("gw", 1, 1, 10_000)) << Renew(1, 10_000)).settled()
    (play.at(1) >> timer << Offer(2, 10_000) << Send(Heartbeat("gw", 1, 2))).settled()


def test_an_acknowledgement_of_an_earlier_epoch_renews_nothing() -> None:
    play = fenced().run(answers(None, over()), answers(opening(fence=True), session(2)))
    play.run(adopted(2))
    (play >> answers(None, HeartbeatAcknowledged("gw", 1, 1, 10_000))).settled()
    (play >> answers(None, HeartbeatAcknowledged("gw", 2, 2, 10_000)) << Renew(2, 10_000)).settled()


def test_a_short_lease_has_more_heartbeats() -> None:
    play = Playbook(Gateway(FENCED, PUBLIC)).run(opens)
    short = replace(session(1), lease_ms=1200)
    play.run(answers(opening(fence=True), short), adopted(1), timer)
    assert play.gateway.next_deadline_ns() == moment(0.2).monotonic_ns


def test_under_fence_the_lease_ends_before_the_session_is_closed() -> None:
    (fenced() >> closes << EndLease() << Submit(CloseSession("gw", 1))).settled()


def test_a_clean_stop_drops_what_waits_and_says_so() -> None:
    play = in_session((1, BOB)).run(claims(1, ANN, port=9000))
    (play >> closes << Verdict(1, Action.DROP) << Submit(CloseSession("gw", 1))).settled()


def test_a_stop_before_any_session_says_nothing() -> None:
    (Playbook(Gateway(SETTINGS, PUBLIC)).run(opens) >> closes).settled()


def test_what_is_granted_behind_a_stop_is_given_back() -> None:
    play = in_session().run(claims(1, ANN)).run(closes)
    (play >> answers(claim(ANN), grant(7, ANN)) << Submit(went(7, Ending.LATE, 0))).settled()


def test_a_session_granted_behind_a_stop_is_closed_and_no_other_is_opened() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens).run(closes)
    play = play >> answers(opening(), session(4)) << Submit(CloseSession("gw", 4))
    (play >> answers(None, SessionOver("gw", 4, None))).settled()


def test_under_fence_a_session_whose_table_never_came_is_left_to_run_out() -> None:
    play = Playbook(Gateway(FENCED, PUBLIC)).run(opens).run(closes)
    (play >> answers(opening(fence=True), session(4))).settled()
    play = fenced().run(answers(None, over())).run(closes)  # its own table's lease has ended
    (play >> answers(opening(fence=True), session(4)) << Submit(CloseSession("gw", 4))).settled()


def test_a_late_grant_for_the_old_address_leaves_the_call_on_the_new_one_alone() -> None:
    play = in_session().run(claims(1, ANN)).at(1).run(timer, sees(kernel(public=NEW_PUBLIC))).at(2)
    play.run(claims(2, ANN))
    play.run(answers(claim(ANN, 2, public=NEW_PUBLIC), grant(8, ANN, public=NEW_PUBLIC)), installed(8))
    (play >> answers(claim(ANN), grant(7, ANN)) << Submit(went(7, Ending.ADDRESS_CHANGED, 2))).settled()


def test_a_view_without_a_table_says_nothing_of_the_address() -> None:
    """What must be withdrawn is withdrawn from a table that is there again."""
    gone = KernelView(None, {}, {}, {}, queueing=False, public=NEW_PUBLIC)
    play = in_session((1, ANN))
    (play >> sees(gone) << Restore("table", (with_left(300),))).settled()
    assert play.gateway.public == PUBLIC
