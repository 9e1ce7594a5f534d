"""A call goes on when tracker or rewriter die or stop, and afterwards kernel, state and log agree.

One site for each disaster, all at the same time: an outage has to be longer than the silence time-out that
client and reflector enforce. By default that is shortened; `pytest -m soak tests/lab` has the protocol's own
60 s and outages of 90 s.
"""

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.lab.conftest import SiteMaker, make_site
from tests.lab.gateway_site import ANN, BOB, REFLECTOR, Site, await_video_both_ways, conference
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, refusals
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
        reflector, ann, zoe = conference(site, *patience, reflector_options=patience)
        return cls(site, reflector, ann, zoe)

    def assert_unbroken(self) -> None:
        """Nobody was thrown out, nobody came a second time, nothing was wrong."""
        assert [actor.seen("timed_out") for actor in (self.ann, self.zoe)] == [[], []]
        assert self.reflector.seen("left") == []
        assert len(self.reflector.seen("login")) == 2
        for actor in (self.ann, self.zoe):
            assert [call["established"] for call in actor.counters()["calls"]] == [True]


def kill_both(site: Site) -> None:
    site.kill("tracker")
    site.kill("rewriter")


DISASTERS: dict[str, Callable[[Site], None]] = {
    "rewriter killed": lambda site: site.kill("rewriter"),
    "rewriter stopped": lambda site: site.signal("rewriter", signal.SIGSTOP),
    "tracker killed": lambda site: site.kill("tracker"),
    "both killed": kill_both,
}


def bring_back_both(site: Site) -> None:
    """The rewriter first: it has to stand in until the tracker is there."""
    site.start_rewriter(wait=False)
    time.sleep(1)
    site.start_tracker()


REMEDIES: dict[str, Callable[[Site], None]] = {
    "rewriter killed": Site.start_rewriter,
    "rewriter stopped": lambda site: site.signal("rewriter", signal.SIGCONT),
    "tracker killed": Site.start_tracker,
    "both killed": bring_back_both,
}


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
    bobs = {
        name: (story.call.site, story.call.site.udp_socket("workstation-2"))
        for name, story in stories.items()
    }
    for name, disaster in DISASTERS.items():
        disaster(stories[name].call.site)
    until_s = time.monotonic() + length.outage_s
    time.sleep(4)  # the tracker is called silent, the worker's sign of life is over
    for name, count in count_refused(bobs).items():
        stories[name].refused_during = count
    time.sleep(max(0.0, until_s - time.monotonic()))
    for name, story in stories.items():
        story.call.assert_unbroken()
        await_video_both_ways(story.call.ann, story.call.zoe)
        assert story.call.site.holders() == [ANN], name
    for name, story in stories.items():
        REMEDIES[name](story.call.site)
    for story in stories.values():
        story.call.site.await_holders(ANN, timeout_s=20)
    for name, count in count_refused(bobs).items():
        stories[name].refused_after = count
    return stories


def count_refused(claimants: dict[str, tuple[Site, socket.socket]]) -> dict[str, int]:
    """Claim everywhere with a packet each 0.2 s, for a second and a half; how often ICMP came back."""
    with ExitStack() as stack:
        packets = {
            name: stack.enter_context(capture(site.lab, "workstation-2"))
            for name, (site, _) in claimants.items()
        }
        for _ in range(7):
            for _, claimant in claimants.values():
                claimant.sendto(open_continue(BOB), (REFLECTOR, SERVICE_PORT))
            time.sleep(0.2)
    return {name: len(refusals(seen)) for name, seen in packets.items()}


LENGTHS = [
    pytest.param(Length(7.5, 9.0), id="short"),
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
    await_video_both_ways(stories[name].call.ann, stories[name].call.zoe)


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


def test_a_grant_that_comes_too_late_leaves_no_doubt_who_holds(new_site: SiteMaker) -> None:
    site = new_site(gateway={"claim_timeout_s": 1.0})
    site.start()
    bob, peer = site.udp_socket("workstation-2"), site.udp_socket("reflector")
    with site.stopped("tracker"), capture(site.lab, "workstation-2") as packets:
        for _ in range(13):
            bob.sendto(open_continue(BOB), (REFLECTOR, SERVICE_PORT))
            time.sleep(0.1)
    assert refusals(packets)
    wait_until(lambda: len(set(map(tuple, site.views()))) == 1 and site.holdings() != [], "one answer of all")
    time.sleep(0.5)
    kernel, told, logged = site.views()
    assert kernel == told == logged
    received(peer, 0.05)
    bob.sendto(open_continue(BOB), (REFLECTOR, SERVICE_PORT))
    assert bool(received(peer, 0.2)) == (kernel == [BOB])
    site.assert_log_clean()


def test_daemons_end_on_request_and_a_restart_makes_no_silence_longer(new_site: SiteMaker) -> None:
    site = new_site(service={"idle_s": 30.0})
    site.start()
    ann = site.udp_socket("workstation-1")
    ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    site.await_holders(ANN)
    silent_since_s = time.monotonic()
    time.sleep(1.5)
    for number in (signal.SIGTERM, signal.SIGINT):
        site.signal("rewriter", number)
        assert site.daemon("rewriter").wait(10) == 0, site.said("rewriter")
        assert site.holders() == [ANN]
        site.start_rewriter()
    left_s = seconds_left(site)
    # Between its look at the old table and the load of the new one a little is lost.
    assert left_s + (time.monotonic() - silent_since_s) < 31.2
    site.signal("tracker", signal.SIGTERM)
    assert site.daemon("tracker").wait(10) == 0, site.said("tracker")
    assert [holding.until_ns for holding in site.holdings()] == [None]
    site.assert_log_clean()


def seconds_left(site: Site) -> float:
    """Of the holder's idle time, in the kernel (nft's JSON has whole seconds, its text has more)."""
    words = ["nft", "list", "set", "ip", "porthold", "cuseeme_holders"]
    listed = site.lab.run("gateway", words).stdout
    found = re.search(r"expires (?:(\d+)s)?(?:(\d+)ms)?", listed)
    assert found is not None
    return int(found[1] or 0) + int(found[2] or 0) / 1000
