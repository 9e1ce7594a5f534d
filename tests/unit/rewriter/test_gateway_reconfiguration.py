"""Other settings in a running worker: what the tracker has to hear of, and what concerns the kernel alone."""

import dataclasses

from rewriter.effects import Adopt, Purge, Send, Submit, Verdict
from rewriter.gateway import Gateway, Settings
from tests.unit.rewriter.playbook import (
    ANN,
    BOB,
    CHAT,
    CUSEEME,
    DEFINITIONS,
    IDLE_S,
    PUBLIC,
    SETTINGS,
    Event,
    Playbook,
    adopted,
    answers,
    claims,
    element,
    in_session,
    kernel,
    moment,
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
from tracker.events import Ending
from tracker.messages import Heartbeat, WithdrawBinding

IMPATIENT = dataclasses.replace(
    SETTINGS,
    services=(dataclasses.replace(CUSEEME, idle_s=IDLE_S / 2),),
    definitions=(dataclasses.replace(DEFINITIONS[0], idle_ms=round(IDLE_S * 500)),),
    revision=1,
)
OTHER_OPENING = dataclasses.replace(opening(), services=IMPATIENT.definitions)
OTHER_RULES = dataclasses.replace(
    SETTINGS, services=(dataclasses.replace(CUSEEME, callers=()), CHAT), revision=1
)


def reconfigured(settings: Settings) -> Event:
    return lambda gateway, _: gateway.reconfigure(settings)


def test_other_services_open_the_session_anew_and_are_in_force_with_its_grant() -> None:
    play = in_session((1, ANN))
    play >> reconfigured(IMPATIENT) << Submit(OTHER_OPENING)
    assert play.gateway.settings == SETTINGS
    bound = view(1, ANN, since_s=-1000), view(2, BOB, service="chat", since_s=-1000)
    (
        play
        >> answers(OTHER_OPENING, session(2, *bound))
        << Adopt(2, ((1, element(ANN)),))
        >> adopted(2, 1, before=1)
        << Submit(went(2, Ending.RECONFIGURED, epoch=2))
    ).settled()
    assert play.gateway.settings == IMPATIENT


def test_what_was_silent_stays_so_under_another_idle_time() -> None:
    play = in_session((1, ANN)).at(100).run(sees(kernel(element(ANN), left_s=IDLE_S - 100)))
    play.run(
        reconfigured(IMPATIENT), answers(OTHER_OPENING, session(2, view(1, ANN))), adopted(2, 1, before=1)
    )
    assert [held.left_s for held in play.gateway.elements()] == [IDLE_S / 2 - 100]


def test_other_rules_alone_replace_the_table_of_this_epoch() -> None:
    play = in_session((1, ANN)).run(sees(kernel(element(ANN), dropped={"claims": 5})))
    (
        play
        >> reconfigured(OTHER_RULES)
        << Adopt(1, ((1, element(ANN)),))
        >> adopted(1, 1, before=1)
        >> sees(kernel(element(ANN), dropped={"claims": 5}))  # the queues are the same, and so is their count
    ).settled()
    assert play.gateway.settings == OTHER_RULES


def test_a_holder_that_is_to_carry_the_public_address_itself_from_now_on_claims_anew() -> None:
    carried = dataclasses.replace(CUSEEME, passthrough=True)
    play = in_session((1, ANN))
    (
        play
        >> reconfigured(dataclasses.replace(SETTINGS, services=(carried, CHAT), revision=1))
        << Adopt(1, ())
        >> adopted(1, before=1)
        << Submit(went(1, Ending.RECONFIGURED, last_s=0))
    ).settled()


def test_what_ran_out_while_the_table_was_replaced_was_idle() -> None:
    play = in_session((1, ANN)).at(IDLE_S).run(reconfigured(OTHER_RULES))
    (play >> adopted(1, before=1) << Submit(went(1, Ending.IDLE, IDLE_S, last_s=0))).settled()


def test_another_time_out_alone_leaves_kernel_and_tracker_alone() -> None:
    play = in_session((1, ANN))
    (play >> reconfigured(dataclasses.replace(SETTINGS, claim_timeout_s=0.2))).settled()
    play.run(claims(5, BOB))
    assert play.gateway.next_deadline_ns() == moment(0.2).monotonic_ns


def test_before_the_first_session_all_waits_for_it() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC)).run(opens)
    (
        play
        >> reconfigured(IMPATIENT)
        >> answers(opening(), session(1))
        << Adopt(1, ())
        >> adopted(1)
        >> timer
        << Send(Heartbeat("gw", 1, 1))
        << Submit(OTHER_OPENING)
    ).settled()


def test_what_changes_twice_is_asked_once_more_when_the_tracker_has_answered() -> None:
    play = in_session().run(reconfigured(IMPATIENT))
    (play >> reconfigured(OTHER_RULES)).settled()
    play.run(answers(OTHER_OPENING, session(2)), adopted(2, before=1)).at(1)
    (play >> timer << Send(Heartbeat("gw", 2, 2)) << Submit(opening())).settled()


def test_with_a_full_outbox_the_tracker_is_asked_later() -> None:
    play = in_session().run(outbox(room=False, drained=False))
    (play >> reconfigured(IMPATIENT)).settled()
    play.run(outbox(room=True, drained=True)).at(1)
    (play >> timer << Send(Heartbeat("gw", 1, 2)) << Submit(OTHER_OPENING)).settled()


def test_nothing_is_looked_for_of_a_service_that_is_no_more() -> None:
    play = Playbook(Gateway(SETTINGS, PUBLIC))
    bound = view(1, ANN), view(2, ANN, service="chat")
    play.run(opens, answers(opening(), session(1, *bound)), adopted(1, 1, 2), timer)
    for binding in (1, 2):
        play.run(answers(None, WithdrawBinding("gw", binding, Ending.RELEASE)), withdrawn(binding))
    play.run(reconfigured(IMPATIENT), answers(OTHER_OPENING, session(2)), adopted(2, before=1)).at(1)
    (play >> timer << Purge(element(ANN)) << Send(Heartbeat("gw", 2, 2))).settled()


def test_a_claim_that_waits_for_the_older_session_is_made_again_by_its_host() -> None:
    play = in_session().run(claims(5, ANN), reconfigured(IMPATIENT))
    effects = list(play.gateway.receive_answer(OTHER_OPENING, session(2), play.now))
    assert isinstance(effects[0], Verdict)
    assert effects[1:] == [Adopt(2, ())]
