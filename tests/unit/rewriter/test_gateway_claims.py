"""The gateway's machine from a claim to its answer: asked, granted, refused, late, given up."""

from rewriter.effects import (
    Action,
    Install,
    Refuse,
    Send,
    Settle,
    Submit,
    Verdict,
    Withdraw,
)
from rewriter.gateway import Gateway
from tests.unit.rewriter.playbook import (
    ANN,
    BOB,
    DENIED,
    HEARD,
    HELD_BY_OTHER,
    NEW_PUBLIC,
    PUBLIC,
    SETTINGS,
    Playbook,
    answers,
    came,
    claim,
    claims,
    element,
    flow,
    grant,
    in_session,
    install_failed,
    installed,
    kernel,
    moment,
    not_submitted,
    opening,
    opens,
    outbox,
    sees,
    session,
    timer,
    view,
    went,
    withdrawn,
)
from tracker.events import (
    Ending,
    OutboxFilled,
)
from tracker.messages import (
    Acknowledged,
    ClaimRefusal,
    ClaimRefused,
    Heartbeat,
    ResendFrom,
    WithdrawBinding,
)


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


def test_a_late_grant_for_the_old_address_leaves_the_call_on_the_new_one_alone() -> None:
    play = in_session().run(claims(1, ANN)).at(1).run(timer, sees(kernel(public=NEW_PUBLIC))).at(2)
    play.run(claims(2, ANN))
    play.run(answers(claim(ANN, 2, public=NEW_PUBLIC), grant(8, ANN, public=NEW_PUBLIC)), installed(8))
    (play >> answers(claim(ANN), grant(7, ANN)) << Submit(went(7, Ending.ADDRESS_CHANGED, 2))).settled()
