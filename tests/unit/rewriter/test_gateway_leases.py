"""The gateway's machine under fence, and how it stops: leases offered, renewed, ended, closed."""

from dataclasses import replace

from rewriter.effects import (
    Action,
    Adopt,
    EndLease,
    Offer,
    Renew,
    Send,
    Submit,
    Verdict,
)
from rewriter.gateway import Gateway
from tests.unit.rewriter.playbook import (
    ANN,
    BOB,
    PUBLIC,
    SETTINGS,
    Playbook,
    adopted,
    answers,
    claim,
    claims,
    closes,
    grant,
    in_session,
    moment,
    opening,
    opens,
    over,
    session,
    timer,
    went,
)
from tracker.events import (
    Ending,
)
from tracker.messages import (
    CloseSession,
    Heartbeat,
    HeartbeatAcknowledged,
    SessionOver,
)

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
