"""Floods: what a call, the worker's upcalls, memory and log have to do with them. Counts, never times.

`python -m tests.bench.floods` compares losses with those of plain forwarding, at full rate.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from rewriter.queues import QUEUE_LENGTH
from rewriter.selection import CLAIM_RATE_PER_S, TALK_RATE_PER_S
from tests.lab.conftest import make_site
from tests.lab.flood import flooding
from tests.lab.gateway_site import ANN, BOB, CALLER, PATIENCE_S, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, SO_RCVBUFFORCE, open_continue, received, video
from tools.lab import wait_until
from tracker.events import PortRefused, QueueOverflowed, WorkerLost

SET_SIZE = 4096
TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    with ExitStack() as stack:
        site = make_site(stack)
        site.start()
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    running.begin_test()
    yield running
    assert running.end_test()


@contextmanager
def call(site: Site) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ann's socket and the reflector's; she holds the port. Her call has lost nothing at the end."""
    with site.udp_socket("workstation-1") as ann, site.udp_socket("reflector") as peer:
        ann.sendto(open_continue(ANN), TO_REFLECTOR)
        site.await_holders(ANN)
        received(peer, 0.05)
        yield ann, peer
        received(peer, 0.1)
        ann.sendto(open_continue(ANN), TO_REFLECTOR)
        assert peer.recvfrom(2048)[0] == open_continue(PUBLIC)
        site.await_holders(ANN)
        assert site.events(WorkerLost) == []
        site.assert_log_clean()


def fill(site: Site, name: str) -> None:
    """Put a set of addresses at its size, for a minute."""
    hosts = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(SET_SIZE))
    texts = ", ".join(f"{host} timeout 60s" for host in hosts)
    site.lab.run("gateway", ["nft", "-f", "-"], stdin_text=f"add element ip porthold {name} {{ {texts} }}")
    with pytest.raises(subprocess.CalledProcessError):
        site.lab.run("gateway", ["nft", "add", "element", "ip", "porthold", name, "{ 172.16.0.1 }"])


def empty(site: Site, name: str) -> None:
    site.lab.run("gateway", ["nft", "flush", "set", "ip", "porthold", name])


def test_full_sets_let_nobody_through_and_end_no_worker(site: Site) -> None:
    elsewhere = (CALLER, SERVICE_PORT)
    with site.udp_socket("workstation-2") as bob, site.udp_socket("caller") as peer:
        fill(site, "cuseeme_pending")
        bob.sendto(open_continue(BOB), elsewhere)  # there is no room to ask for him
        assert received(peer, 0.2) == []
        assert site.counters()["claims_over_rate"] == 1
        empty(site, "cuseeme_pending")
        fill(site, "cuseeme_refused")
        with call(site):
            bob.sendto(open_continue(BOB), elsewhere)  # no room to remember that he is refused
            wait_until(lambda: len(site.events(PortRefused)) == 1, "his refusal", PATIENCE_S)
            for _ in range(10):
                bob.sendto(open_continue(BOB), elsewhere)
            assert received(peer, 0.2) == []
            assert site.counters()["claims_queued"] == 2
            site.assert_running()
    empty(site, "cuseeme_refused")


def test_who_gets_the_port_needs_no_room_in_sets_that_others_can_fill(site: Site) -> None:
    ann = site.udp_socket("workstation-1")
    with site.stopped("tracker"):
        ann.sendto(open_continue(ANN), TO_REFLECTOR)
        wait_until(lambda: site.counters()["claims_queued"] == 1, "her claim")
        empty(site, "cuseeme_pending")
        fill(site, "cuseeme_pending")
    site.await_holders(ANN)
    empty(site, "cuseeme_pending")


def test_callers_from_everywhere_do_not_keep_the_holder_from_being_translated(site: Site) -> None:
    with call(site) as (ann, peer):
        fill(site, "callers_talk_rate")
        for _ in range(5):
            peer.sendto(open_continue(REFLECTOR, entries=(PUBLIC,)), TO_PUBLIC)
            assert ann.recvfrom(2048)[0] == open_continue(REFLECTOR, entries=(ANN,))
    empty(site, "callers_talk_rate")


def test_claims_from_ever_new_addresses_are_few_upcalls_and_few_records(site: Site) -> None:
    words = ("--from", f"10.0.0.1:{SERVICE_PORT}", "--sources", "16384", "--to", f"{CALLER}:{SERVICE_PORT}")
    began_s = time.monotonic()
    with call(site), flooding(site.lab, "workstation-2", *words, "--seconds", "1.5") as flood:
        wait_until(lambda: site.counters()["claims_over_rate"] > 0, "the flood", 30)
    counted = site.counters()
    most = (2 + time.monotonic() - began_s) * CLAIM_RATE_PER_S + 1
    assert counted["claims_queued"] < most
    assert flood.sent > 2 * counted["claims_queued"]
    assert counted["claims_over_rate"] > 0
    assert len(site.events(PortRefused)) <= counted["claims_queued"]


def test_a_full_queue_loses_nothing_of_a_call_and_is_recorded(site: Site) -> None:
    sent = QUEUE_LENGTH + 200
    with call(site) as (ann, peer):
        peer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        queued_before = site.counters()["talks_queued"]
        with site.stopped("rewriter"):
            for number in range(sent):
                if number % TALK_RATE_PER_S == 0:  # as if it came from many
                    empty(site, "talk_rate")
                ann.sendto(open_continue(ANN, sequence=number), TO_REFLECTOR)
            passed = received(peer, 0.1)
            # Where that took longer than a worker counts as alive, the rest was not even sent to the queue.
            never_sent_there = sent - (site.counters()["talks_queued"] - queued_before)
        assert len(passed) > never_sent_there
        arrived = {data for data, _ in passed + received(peer, 2.0)}
        assert arrived == {open_continue(PUBLIC, sequence=number) for number in range(sent)}
        wait_until(lambda: site.events(QueueOverflowed) != [], "the record of it", PATIENCE_S)
    assert {event.queue for event in site.events(QueueOverflowed)} == {"talks"}
    assert sum(event.dropped for event in site.events(QueueOverflowed)) == len(passed) - never_sent_there


def connections(site: Site) -> int:
    return int(site.lab.run("gateway", ["conntrack", "-C"]).stdout)


def test_what_a_flood_leaves_in_conntrack_keeps_no_port_from_anybody(site: Site) -> None:
    site.lab.take_flood_sources("198.18.0.0/15", "caller")
    words = ("--from", f"198.18.0.1:{SERVICE_PORT}", "--sources", "16384", "--to", f"{PUBLIC}:{SERVICE_PORT}")
    with flooding(site.lab, "caller", *words, "--kind", "random", "--seconds", "1") as flood:
        pass
    assert connections(site) > min(flood.sent, 16_384) / 2
    assert len(site.lab.run("internet", ["ip", "neighbour"]).stdout.splitlines()) < 10
    with call(site) as (ann, peer):
        peer.sendto(video(REFLECTOR, to=PUBLIC), TO_PUBLIC)
        assert ann.recvfrom(2048)[0] == video(REFLECTOR, to=ANN)
        # Long before they would run out by themselves.
        wait_until(lambda: connections(site) < 100, "the flood's connections forgotten", 15)
