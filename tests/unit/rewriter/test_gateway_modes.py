"""Who holds: a host that the configuration names, or the last one that called."""

import dataclasses

from rewriter.cuseeme import Message
from rewriter.effects import Action, Adopt, Install, Purge, Refuse, Send, Submit, Verdict, Withdraw
from rewriter.gateway import Gateway
from tests.unit.rewriter.playbook import (
    ANN,
    BOB,
    CUSEEME,
    DEFINITIONS,
    PEER,
    PUBLIC,
    SETTINGS,
    Playbook,
    adopted,
    answers,
    came,
    claim,
    claims,
    element,
    grant,
    in_session,
    installed,
    kernel,
    moment,
    open_continue,
    opening,
    opens,
    sees,
    session,
    talks,
    timer,
    view,
    went,
    withdrawn,
)
from tracker.events import Ending, Policy
from tracker.messages import ClaimPort, ClaimRefusal, ClaimRefused, Heartbeat, WithdrawBinding

FIXED = dataclasses.replace(
    SETTINGS,
    services=(dataclasses.replace(CUSEEME, policy="fixed", fixed_holder=ANN),),
    definitions=(dataclasses.replace(DEFINITIONS[0], policy=Policy.FIXED, holder=ANN.packed),),
)
OPENING = dataclasses.replace(opening(), services=FIXED.definitions)
TAKE_OVER = WithdrawBinding("gw", 1, Ending.TAKE_OVER)


def unasked(seconds: float = 0, *, epoch: int = 1) -> ClaimPort:
    """The claim for a host that has sent nothing."""
    return dataclasses.replace(
        claim(ANN, seconds, epoch=epoch),
        mac=None,
        source_port=0,
        destination=bytes(4),
        destination_port=0,
    )


def test_a_fixed_holder_is_claimed_for_as_soon_as_there_is_a_session() -> None:
    play = Playbook(Gateway(FIXED, PUBLIC)).run(opens)
    (
        play
        >> answers(OPENING, session(1))
        << Adopt(1, ())
        >> adopted(1)
        << Submit(unasked())
        >> timer
        << Send(Heartbeat("gw", 1, 1))
        >> answers(unasked(), grant(1, ANN))
        << Install(1, element(ANN))
        >> installed(1)
        << Submit(came(1))
    ).settled()


def held_by_ann() -> Playbook:
    play = Playbook(Gateway(FIXED, PUBLIC)).run(opens)
    return play.run(
        answers(OPENING, session(1, view(1, ANN))), adopted(1, 1), sees(kernel(element(ANN))), timer
    )


def test_what_ends_for_a_fixed_holder_begins_again_within_a_second() -> None:
    play = held_by_ann().run(answers(None, WithdrawBinding("gw", 1, Ending.RELEASE)), withdrawn(1))
    (
        play.at(1) >> timer << Purge(element(ANN)) << Send(Heartbeat("gw", 1, 2)) << Submit(unasked(1))
    ).settled()


def test_a_refused_claim_for_a_fixed_holder_is_made_again() -> None:
    play = Playbook(Gateway(FIXED, PUBLIC)).run(opens, answers(OPENING, session(1)), adopted(1), timer)
    refused = ClaimRefused(ClaimRefusal.HELD, BOB.packed, 7)
    (play >> answers(unasked(), refused) << Refuse("cuseeme", ANN)).at(1)
    (play >> timer << Send(Heartbeat("gw", 1, 2)) << Submit(unasked(1))).settled()


def test_a_fixed_holder_that_hangs_up_keeps_the_port() -> None:
    play = held_by_ann()
    before_ns = play.gateway.next_deadline_ns()
    play.run(talks(3, open_continue(ANN, PEER, message=Message.CLOSE)))
    assert play.gateway.next_deadline_ns() == before_ns


def test_a_binding_of_another_host_ends_when_the_port_is_given_to_a_fixed_one() -> None:
    play = Playbook(Gateway(FIXED, PUBLIC)).run(opens)
    (
        play
        >> answers(OPENING, session(2, view(1, BOB)))
        << Adopt(2, ())
        >> adopted(2)
        << Submit(went(1, Ending.RECONFIGURED, epoch=2))
        << Submit(unasked(epoch=2))
    ).settled()


def test_the_last_one_claims_again_behind_the_word_that_the_one_before_is_gone() -> None:
    play = in_session((1, ANN)).run(claims(5, BOB)).at(0.1)
    (
        play
        >> answers(claim(BOB), TAKE_OVER)
        << Withdraw(1, element(ANN), Ending.TAKE_OVER)
        >> withdrawn(1)
        << Submit(went(1, Ending.TAKE_OVER, 0.1, last_s=0))
        << Submit(claim(BOB, 0.1))
        >> answers(claim(BOB, 0.1), grant(2, BOB))
        << Install(2, element(BOB))
        >> installed(2)
        << Verdict(5, Action.ACCEPT)
        << Submit(came(2, 0.1))
    ).settled()


def test_two_that_want_it_at_once_both_wait_for_its_end() -> None:
    carl = BOB + 1
    play = in_session((1, ANN)).run(claims(5, BOB), claims(6, carl)).at(0.1)
    (
        play
        >> answers(claim(BOB), TAKE_OVER)
        << Withdraw(1, element(ANN), Ending.TAKE_OVER)
        >> answers(claim(carl), TAKE_OVER)
        >> withdrawn(1)
        << Submit(went(1, Ending.TAKE_OVER, 0.1, last_s=0))
        << Submit(claim(BOB, 0.1))
        << Submit(claim(carl, 0.1))
    ).settled()


def test_whoever_has_given_up_takes_over_nothing_more() -> None:
    play = in_session((1, ANN)).run(claims(5, BOB)).at(1.1).run(timer)
    (
        play
        >> answers(claim(BOB), TAKE_OVER)
        << Withdraw(1, element(ANN), Ending.TAKE_OVER)
        >> withdrawn(1)
        << Submit(went(1, Ending.TAKE_OVER, 1.1, last_s=0))
    ).settled()


def test_what_has_ended_already_is_claimed_at_once() -> None:
    play = in_session((1, ANN)).run(claims(5, BOB))
    play.run(answers(None, WithdrawBinding("gw", 1, Ending.RELEASE)), withdrawn(1)).at(0.1)
    (play >> answers(claim(BOB), TAKE_OVER) << Submit(claim(BOB, 0.1))).settled()
    assert play.gateway.next_deadline_ns() <= moment(1).monotonic_ns


def test_between_two_hosts_of_the_lan_each_sees_the_other_at_the_public_address() -> None:
    play = in_session((1, ANN))
    said = open_continue(BOB, ANN, name="Bob")
    (verdict,) = list(play.gateway.receive_talk(5, said, play.now, hairpinned=True))
    assert isinstance(verdict, Verdict)
    assert verdict.payload == open_continue(BOB, ANN, name="Bob", header_address=PUBLIC).payload
