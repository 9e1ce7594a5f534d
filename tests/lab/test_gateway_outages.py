"""A call goes on when tracker or rewriter die or stop, and afterwards kernel, state and log agree.

One site for each disaster, all at the same time: an outage has to be longer than the silence time-out that
client and reflector enforce. By default that is shortened; `pytest -m soak tests/lab` has the protocol's own 60 s
and outages of 90 s.
"""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.lab.conftest import make_site
from tests.lab.gateway_site import ANN, BOB, REFLECTOR, SERVICE_PORT, Site, capture, open_continue, refusals
from tools.lab import Actor, wait_until
from tracker.events import SessionOpened, TrackerStarted, WorkerLost, WorkerReturned


@dataclass(frozen=True)
class Length:
    """Seconds: the silence time-out of both ends, the outage."""

    silence_s: float
    outage_s: float


@dataclass
class Call:
    """A call between a workstation and somebody outside, through a strict reflector."""

    site: Site
    reflector: Actor
    ann: Actor
    zoe: Actor

    @classmethod
    def begin(cls, site: Site, silence_s: float) -> "Call":
        patience = ("--silence-timeout-s", str(silence_s))
        reflector = site.lab.reflector("reflector", *patience)
        ann = site.lab.client("workstation-1", "Ann", *patience)
        zoe = site.lab.client("caller", "Zoe", *patience)
        site.log_in(ann)
        site.log_in(zoe)
        ann.wait_for("watched", name="Zoe", timeout_s=10)
        zoe.wait_for("watched", name="Ann", timeout_s=10)
        return cls(site, reflector, ann, zoe)

    def assert_unbroken(self) -> None:
        """Nobody was thrown out, nobody came a second time, nothing was wrong."""
        assert [actor.seen("timed_out") for actor in (self.ann, self.zoe)] == [[], []]
        assert self.reflector.seen("left") == []
        assert len(self.reflector.seen("login")) == 2
        for actor in (self.ann, self.zoe):
            assert [call["established"] for call in actor.counters()["calls"]] == [True]

    def assert_media_crosses(self) -> None:
        for client in (self.ann, self.zoe):
            before = client.counters().get("received_video", 0)
            other = self.zoe if client is self.ann else self.ann
            other.wait_for("sent", since=other.command("video 20 200"), kind="video", timeout_s=10)
            wait_until(
                lambda c=client, b=before: c.counters().get("received_video", 0) == b + 22, "video of the call"
            )


def kill_rewriter(site: Site) -> None:
    site.kill("rewriter")


def stop_rewriter(site: Site) -> None:
    site.signal("rewriter", signal.SIGSTOP)


def kill_tracker(site: Site) -> None:
    site.kill("tracker")


def kill_both(site: Site) -> None:
    site.kill("tracker")
    site.kill("rewriter")


DISASTERS: dict[str, Callable[[Site], None]] = {
    "rewriter killed": kill_rewriter,
    "rewriter stopped": stop_rewriter,
    "tracker killed": kill_tracker,
    "both killed": kill_both,
}


def undo(name: str, site: Site) -> None:
    match name:
        case "rewriter killed":
            site.start_rewriter()
        case "rewriter stopped":
            site.signal("rewriter", signal.SIGCONT)
        case "tracker killed":
            site.start_tracker()
        case "both killed":
            site.start_rewriter(wait=False)  # the rewriter first: it has to stand in until the tracker is there
            time.sleep(1)
            site.start_tracker()


@dataclass
class Story:
    """What was seen of one site: its call, new claims during the outage and after it."""

    call: Call
    broken: list[str]
    refused_during: int = 0
    refused_after: int = 0


def play(stack: ExitStack, length: Length) -> dict[str, Story]:
    """The four disasters, from the same moment to the same moment; then all is brought back."""
    stories: dict[str, Story] = {}
    for name in DISASTERS:
        site = make_site(stack, tracker={"lease_s": 3.0}, service={"idle_s": 4 * length.outage_s})
        site.start()
        stories[name] = Story(Call.begin(site, length.silence_s), [])
    bobs = {name: story.call.site.udp_socket("workstation-2", 40000) for name, story in stories.items()}
    for name, disaster in DISASTERS.items():
        disaster(stories[name].call.site)
    until_s = time.monotonic() + length.outage_s
    time.sleep(4)  # the tracker is called silent, the worker's sign of life is over
    for name, story in stories.items():
        story.refused_during = count_refused(story.call.site, bobs[name])
    time.sleep(max(0.0, until_s - time.monotonic()))
    for name, story in stories.items():
        story.call.assert_unbroken()
        story.call.assert_media_crosses()
        assert story.call.site.holders() == [ANN], name
    for name, story in stories.items():
        undo(name, story.call.site)
    for name, story in stories.items():
        story.call.site.await_holders(ANN, timeout_s=20)
        story.refused_after = count_refused(story.call.site, bobs[name])
    return stories


def count_refused(site: Site, claimant: socket.socket) -> int:
    """Claim with a packet each 0.2 s, for a second and a half; how often ICMP came back."""
    with capture(site.lab, "workstation-2") as packets:
        for _ in range(7):
            claimant.sendto(open_continue(BOB), (REFLECTOR, SERVICE_PORT))
            time.sleep(0.2)
    return len(refusals(packets))


LENGTHS = [
    pytest.param(Length(8.0, 10.0), id="short"),
    pytest.param(Length(60.0, 90.0), id="long", marks=[pytest.mark.soak, pytest.mark.timeout(400)]),
]


@pytest.fixture(scope="module", params=LENGTHS)
def stories(request: pytest.FixtureRequest) -> Iterator[dict[str, Story]]:
    """The call of every site went on through the outage when this is given out."""
    with ExitStack() as stack:
        yield play(stack, request.param)


@pytest.mark.parametrize("name", DISASTERS)
def test_a_call_goes_on_through_an_outage_and_after_it(stories: dict[str, Story], name: str) -> None:
    stories[name].call.assert_unbroken()
    stories[name].call.assert_media_crosses()


@pytest.mark.parametrize("name", DISASTERS)
def test_after_an_outage_kernel_state_and_log_agree(stories: dict[str, Story], name: str) -> None:
    site = stories[name].call.site
    site.assert_running()
    site.await_holders(ANN)
    site.assert_log_clean()
    [holding] = site.holdings()
    assert (holding.holder, holding.user_name) == (socket.inet_aton(ANN), "Ann")


@pytest.mark.parametrize("name", DISASTERS)
def test_new_claims_are_refused_without_a_tracker_and_wait_without_a_worker(
    stories: dict[str, Story], name: str
) -> None:
    story = stories[name]
    assert (story.refused_during > 0) == (name == "tracker killed")
    assert story.refused_after > 0


def test_the_log_says_what_was_away(stories: dict[str, Story]) -> None:
    kinds = TrackerStarted, WorkerLost, WorkerReturned, SessionOpened
    seen = {
        name: tuple(len(story.call.site.events(kind)) for kind in kinds) for name, story in stories.items()
    }
    assert seen == {
        "rewriter killed": (1, 1, 0, 2),
        "rewriter stopped": (1, 1, 1, 1),
        "tracker killed": (2, 0, 0, 1),
        "both killed": (2, 0, 0, 2),
    }
