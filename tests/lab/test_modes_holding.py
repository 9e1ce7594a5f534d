"""Who holds: `policy = "fixed"` (ipautofw's -h) and `policy = "last"` (what the kernel of 1999 did)."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rewriter.cuseeme import Message
from tests.lab.conftest import SiteMaker, make_site
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, refusals, stream, video
from tools.lab import wait_until
from tracker.events import BindingWithdrawn, Ending, PortBound, PortUnbound

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)


def reconfigured(site: Site, old: str, new: str) -> None:
    """The rewriter ends, and begins again with another word in its configuration."""
    site.signal("rewriter", signal.SIGTERM)
    site.daemon("rewriter").wait(10)
    path: Path = site.configuration
    path.write_text(path.read_text().replace(old, new))
    site.start_rewriter()


def test_a_fixed_workstation_is_reached_before_it_ever_sent(new_site: SiteMaker) -> None:
    site = new_site(service={"policy": "fixed", "holder": ANN})
    site.start()
    site.await_holders(ANN)
    ann, bob = site.udp_socket("workstation-1"), site.udp_socket("workstation-2")
    caller, peer = site.udp_socket("caller", 5000), site.udp_socket("reflector")

    caller.sendto(video(CALLER, to=PUBLIC), TO_PUBLIC)
    assert ann.recvfrom(2048) == (video(CALLER, to=ANN), (CALLER, 5000))
    ann.sendto(video(ANN), (CALLER, 5000))
    assert caller.recvfrom(2048) == (video(PUBLIC), TO_PUBLIC)

    with capture(site.lab, "workstation-2") as to_bob:
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
        wait_until(lambda: site.counters()["refused"] > 0 or bool(site.queues()), "an answer")
        assert received(peer, 0.5) == []
    assert len(refusals(to_bob)) == 1

    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    assert peer.recvfrom(2048)[1] == TO_PUBLIC
    ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
    peer.recvfrom(2048)
    time.sleep(0.2)  # a hang-up would free another's port after 30 ms
    assert site.views() == ([ANN], [ANN], [ANN])

    site.kill("rewriter")
    site.start_rewriter()
    assert [holding.binding for holding in site.holdings()] == [1]  # adopted, not bound anew

    reconfigured(site, ANN, BOB)
    site.await_holders(BOB)
    caller.sendto(b"anybody", TO_PUBLIC)
    assert bob.recvfrom(2048) == (b"anybody", (CALLER, 5000))
    assert [(event.binding, event.reason) for event in site.events(PortUnbound)] == [(1, Ending.RECONFIGURED)]
    bound = site.events(PortBound)
    assert [(event.destination, event.destination_port) for event in bound] == [(bytes(4), 0)] * 2
    site.assert_log_clean()


@pytest.fixture(scope="module")
def contested() -> Iterator[Site]:
    with ExitStack() as stack:
        site = make_site(stack, service={"policy": "last"})
        site.start()
        yield site


def call(host: socket.socket, address: str) -> None:
    host.sendto(open_continue(address), TO_REFLECTOR)


def test_the_last_one_to_call_gets_the_port_and_the_one_before_does_not_steal_it_back(
    contested: Site,
) -> None:
    site = contested
    ann, bob = site.udp_socket("workstation-1"), site.udp_socket("workstation-2")
    caller, peer = site.udp_socket("caller", 5000), site.udp_socket("reflector")
    call(ann, ANN)
    site.await_holders(ANN)
    with capture(site.lab, "workstation-1") as to_ann, stream(ann, video(ANN), TO_REFLECTOR, 50):
        caller.sendto(b"to Ann", TO_PUBLIC)
        assert ann.recvfrom(2048) == (b"to Ann", (CALLER, 5000))
        time.sleep(1)
        call(bob, BOB)
        site.await_holders(BOB)
        caller.sendto(b"to Bob", TO_PUBLIC)
        assert bob.recvfrom(2048) == (b"to Bob", (CALLER, 5000))
        site.kill("rewriter")
        site.start_rewriter()  # what it adopts knows whose call is the older one
        time.sleep(1.5)  # Ann's program goes on with its call, and has noticed nothing yet
        assert site.views() == ([BOB], [BOB], [BOB])
    assert len(refusals(to_ann)) > 3  # the kernel sends no host more than a few ICMP errors a second
    received(peer, 0.1)
    assert received(ann, 0.1) == []

    ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)  # now she has: and calls anew
    call(ann, ANN)
    site.await_holders(ANN)
    ann.sendto(video(ANN), TO_REFLECTOR)
    wait_until(lambda: (video(PUBLIC), TO_PUBLIC) in received(peer, 0.1), "Ann's video")
    ended = site.events(BindingWithdrawn)
    assert [(event.binding, event.reason) for event in ended] == [
        (1, Ending.TAKE_OVER),
        (2, Ending.TAKE_OVER),
    ]
    assert [event.callers for event in ended] == [1, 1]
    order = [type(event) for event in site.all_events() if isinstance(event, PortBound | PortUnbound)]
    assert order == [PortBound, PortUnbound] * 2 + [PortBound]
    site.assert_log_clean()
