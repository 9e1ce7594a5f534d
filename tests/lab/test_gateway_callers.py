"""Callers from outside, and workstations that are refused."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from rewriter.cuseeme import Message
from tests.lab.conftest import SiteMaker, make_site
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, refusals, stream, udp_to, video
from tools.lab import wait_until
from tracker.events import PortRefused, RefusalsEnded

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)


def ann_holds(site: Site) -> socket.socket:
    ann = site.udp_socket("workstation-1")
    ann.sendto(open_continue(ANN, name="Ann"), TO_REFLECTOR)
    site.await_holders(ANN)
    return ann


@dataclass
class Called:
    """A site whose port Ann holds; it serves several tests."""

    site: Site
    ann: socket.socket


@pytest.fixture(scope="module")
def called() -> Iterator[Called]:
    with ExitStack() as stack:
        site = make_site(stack)
        site.start()
        yield Called(site, ann_holds(site))


@pytest.mark.parametrize(
    ("source", "destination"), [(7648, 7648), (5000, 7648), (60211, 7649), (7649, 7649), (24032, 24032)]
)
def test_a_caller_reaches_the_holder_and_hears_him_from_the_public_port(
    called: Called, source: int, destination: int
) -> None:
    site = called.site
    with (
        site.udp_socket("caller", source) as caller,
        site.udp_socket("workstation-1", destination if destination != SERVICE_PORT else 0) as other,
    ):
        ann = called.ann if destination == SERVICE_PORT else other
        caller.sendto(video(CALLER, to=PUBLIC), (PUBLIC, destination))
        assert ann.recvfrom(2048) == (video(CALLER, to=ANN), (CALLER, source))
        ann.sendto(video(ANN), (CALLER, source))
        assert caller.recvfrom(2048) == (video(PUBLIC), (PUBLIC, destination))
        entries = open_continue(CALLER, entries=("9.9.9.9", PUBLIC))
        caller.sendto(entries, (PUBLIC, destination))
        assert ann.recvfrom(2048)[0] == open_continue(CALLER, entries=("9.9.9.9", ANN))


@pytest.mark.parametrize("port", [7648, 7649])
def test_a_caller_by_tcp_reaches_the_holder(called: Called, port: int) -> None:
    site = called.site

    def listen() -> socket.socket:
        return socket.create_server((ANN, port))

    def call() -> socket.socket:
        return socket.create_connection((PUBLIC, port), timeout=3)

    with site.lab.within("workstation-1", listen) as listener, site.lab.within("caller", call) as caller:
        accepted, source = listener.accept()
        with accepted:
            assert source[0] == CALLER
            caller.sendall(b"hello")
            assert accepted.recv(100) == b"hello"
            accepted.sendall(b"goodbye")
            assert caller.recv(100) == b"goodbye"


def test_two_callers_at_once_are_kept_apart(called: Called) -> None:
    site = called.site
    ports = (6001, 6002)
    callers = [site.udp_socket("caller", port) for port in ports]
    for number in range(50):
        for caller in callers:
            caller.sendto(video(CALLER, sequence=number), TO_PUBLIC)
            payload, source = called.ann.recvfrom(2048)
            called.ann.sendto(payload, source)
            assert caller.recvfrom(2048)[1] == TO_PUBLIC


def test_a_caller_reaches_nobody_while_nobody_holds(site: Site) -> None:
    caller = site.udp_socket("caller", 5000)
    with capture(site.lab, "workstation-1") as to_ann, capture(site.lab, "workstation-2") as to_bob:
        for port in (7648, 7649, 24032):
            for _ in range(10):
                caller.sendto(open_continue(CALLER), (PUBLIC, port))
        time.sleep(0.3)
    assert (udp_to(to_ann, ANN), udp_to(to_bob, BOB)) == ([], [])
    assert site.counters()["claims_queued"] == 0


@pytest.mark.parametrize("per_s", [5, 500])
def test_a_caller_who_rings_before_there_is_a_holder_reaches_him(site: Site, per_s: int) -> None:
    caller = site.udp_socket("caller", 5000)
    with stream(caller, video(CALLER), TO_PUBLIC, per_s):
        for _ in range(3):
            time.sleep(0.2)
            ann = ann_holds(site)
            assert ann.recvfrom(2048) == (video(CALLER), (CALLER, 5000))
            ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
            ann.close()
            site.await_holders()


def test_a_refused_workstation_is_told_by_icmp_and_asks_again_after_two_seconds(site: Site) -> None:
    peer = site.udp_socket("reflector")
    ann, bob = ann_holds(site), site.udp_socket("workstation-2")
    peer.recvfrom(2048)
    with capture(site.lab, "workstation-2") as packets, capture(site.lab, "internet", "uplink0") as out:
        for _ in range(32):
            bob.sendto(open_continue(BOB), TO_REFLECTOR)
            time.sleep(0.1)
    told = refusals(packets)
    assert len(told) >= 5  # the kernel limits how many it sends to one host in a second
    assert {seen.packet[44:48] for seen in told} == {socket.inet_aton(REFLECTOR)}  # quotes the refused packet
    assert udp_to(out, REFLECTOR) == []
    assert site.counters()["claims_queued"] - 1 == 2  # in three seconds, one question in two
    [refused] = site.events(PortRefused)
    assert refused.claimant == socket.inet_aton(BOB)
    ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
    site.await_holders()
    [ended] = site.events(RefusalsEnded)
    assert ended.count == site.counters()["claims_queued"] - 1
    bob.sendto(open_continue(BOB), TO_REFLECTOR)  # unbinding empties `refused`
    site.await_holders(BOB)


def test_refused_workstations_hear_nothing_where_that_is_configured(new_site: SiteMaker) -> None:
    site = new_site(gateway={"refusal": "drop"})
    site.start()
    ann_holds(site)
    bob = site.udp_socket("workstation-2")
    with capture(site.lab, "workstation-2") as packets, capture(site.lab, "internet", "uplink0") as out:
        for _ in range(10):
            bob.sendto(open_continue(BOB), TO_REFLECTOR)
            time.sleep(0.05)
    assert (refusals(packets), udp_to(out, REFLECTOR)) == ([], [])


def test_refused_workstations_may_pass_without_inbound_where_that_is_configured(new_site: SiteMaker) -> None:
    site = new_site(gateway={"refusal": "pass", "refused_s": 0.5})
    site.start()
    ann = ann_holds(site)
    bob, peer, caller = (
        site.udp_socket("workstation-2"),
        site.udp_socket("reflector"),
        site.udp_socket("caller", 5000),
    )
    received(peer, 0.05)
    bob.sendto(open_continue(BOB), TO_REFLECTOR)
    payload, source = peer.recvfrom(2048)
    assert payload == open_continue(BOB)  # no holder: nothing is rewritten
    assert source[0] == PUBLIC
    assert source[1] != SERVICE_PORT  # the holder's tuple stays free
    peer.sendto(b"answer", source)
    assert bob.recvfrom(2048)[0] == b"answer"
    caller.sendto(video(CALLER), TO_PUBLIC)
    assert ann.recvfrom(2048)[0] == video(CALLER)
    assert received(bob, 0.2) == []
    ann.sendto(video(ANN), TO_REFLECTOR)
    assert peer.recvfrom(2048) == (video(PUBLIC), TO_PUBLIC)
    for _ in range(20):  # for longer than one refusal lasts
        bob.sendto(video(BOB), TO_REFLECTOR)
        time.sleep(0.05)
    assert len(received(peer, 0.1)) > 15
    ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
    site.await_holders()
    bob.sendto(open_continue(BOB), TO_REFLECTOR)
    site.await_holders(BOB)
    received(peer, 0.1)
    bob.sendto(video(BOB), TO_REFLECTOR)
    assert peer.recvfrom(2048) == (video(PUBLIC), TO_PUBLIC)


def test_another_hosts_flow_from_a_held_port_leaves_the_holders_tuple_alone(site: Site) -> None:
    """`masquerade to` a port that is taken drops without a word (insert_failed in conntrack's statistics)."""
    bob, peer = site.udp_socket("workstation-2"), site.udp_socket("reflector", 9000)
    bob.sendto(b"from a held port", (REFLECTOR, 9000))
    _, source = peer.recvfrom(2048)
    assert source[0] == PUBLIC
    ann = ann_holds(site)
    ann.sendto(b"too", (REFLECTOR, 9000))
    assert peer.recvfrom(2048)[0] == b"too"
    wait_until(lambda: site.holders() == [ANN], "the holder")
