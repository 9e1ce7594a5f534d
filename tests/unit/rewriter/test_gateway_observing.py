"""The gateway's machine and the kernel as it is seen: idle, flushed, strange, full, readdressed."""

from dataclasses import replace

import pytest

from rewriter.effects import (
    Action,
    Adopt,
    KernelView,
    RemoveStray,
    Restore,
    Stop,
    Submit,
    Verdict,
    Withdraw,
)
from rewriter.gateway import Gateway
from tests.unit.rewriter.playbook import (
    ANN,
    BOB,
    DIAL,
    HEARD,
    NEW_PUBLIC,
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
    went,
    with_left,
    withdrawn,
)
from tracker.events import (
    BindingWithdrawn,
    Ending,
    KernelStateRestored,
    PublicAddressChanged,
    QueueOverflowed,
)
from tracker.messages import (
    WithdrawBinding,
)


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
    assert isinstance(submit.message, BindingWithdrawn)
    assert submit.message.last_packet_ns == play.now.wall_ns - 301 * 10**9


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


def test_a_view_without_a_table_says_nothing_of_the_address() -> None:
    """What must be withdrawn is withdrawn from a table that is there again."""
    gone = KernelView(None, {}, {}, {}, queueing=False, public=NEW_PUBLIC)
    play = in_session((1, ANN))
    (play >> sees(gone) << Restore("table", (with_left(300),))).settled()
    assert play.gateway.public == PUBLIC
