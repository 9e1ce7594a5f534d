"""The gateway's machine and its session: opened, waited for, lost, opened anew, with what was held."""

from dataclasses import replace

import pytest

from rewriter.cuseeme import Direction
from rewriter.effects import (
    Action,
    Adopt,
    Install,
    Restore,
    Send,
    Stop,
    Submit,
    Verdict,
    Withdraw,
)
from rewriter.gateway import Gateway, Settings
from rewriter.packet import Endpoint
from tests.unit.rewriter.playbook import (
    ANN,
    BOB,
    DENIED,
    DIAL,
    HANG_UP,
    HELD_BY_OTHER,
    IDLE_S,
    NEW_PUBLIC,
    PUBLIC,
    SECOND_NS,
    SETTINGS,
    Playbook,
    adopted,
    answers,
    claim,
    claims,
    element,
    grant,
    in_session,
    kernel,
    moment,
    opening,
    opens,
    over,
    restored,
    sees,
    session,
    talks,
    timer,
    translated,
    view,
    went,
    with_left,
    withdrawn,
)
from tracker.events import (
    Ending,
    KernelStateRestored,
    SessionEnding,
)
from tracker.messages import (
    Heartbeat,
    WithdrawBinding,
)


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
