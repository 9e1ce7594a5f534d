"""`sharing = "per-peer"`: several workstations at once, each with its own peers."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rewriter.cuseeme import Message
from tests.lab.conftest import make_site
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site, assert_nothing_wrong
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, refusals, video
from tools.lab import wait_until
from tracker.events import Ending, PortUnbound

OTHER_PUBLIC = "192.0.2.3"


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    with ExitStack() as stack:
        addresses: dict[str, object] = {"public_address": None, "public_addresses": [PUBLIC, OTHER_PUBLIC]}
        site = make_site(stack, service={"sharing": "per-peer"}, gateway=addresses)
        site.lab.run("gateway", ["ip", "address", "add", f"{OTHER_PUBLIC}/24", "dev", "wan0"])
        site.start()
        yield site


def held(site: Site) -> list[tuple[str, str, str]]:
    """(holder, peer, public address) of the log's open bindings; the kernel and the tracker agree."""
    found = [
        tuple(socket.inet_ntoa(part) for part in (row.holder, row.peer or b"", row.public_address))
        for row in site.holdings()
        if row.until_ns is None
    ]
    return sorted((holder, peer, public) for holder, peer, public in found)


def await_held(site: Site, *wanted: tuple[str, str, str]) -> None:
    wait_until(lambda: held(site) == sorted(wanted), f"{wanted}, not {held(site)}", 15)
    in_kernel = {f"{holder} . {peer}" for holder, peer, _ in wanted}
    listed = site.lab.run("gateway", ["nft", "list", "set", "ip", "porthold", "cuseeme_holders"]).stdout
    wait_until(lambda: all(key in listed for key in in_kernel), f"{in_kernel} in {listed}", 5)


def test_two_workstations_are_in_calls_with_different_peers_at_once(shared: Site) -> None:
    site = shared
    ann, bob = site.udp_socket("workstation-1"), site.udp_socket("workstation-2")
    peer, other = site.udp_socket("reflector"), site.udp_socket("caller")
    ann.sendto(open_continue(ANN, name="Ann"), (REFLECTOR, SERVICE_PORT))
    assert peer.recvfrom(2048) == (open_continue(PUBLIC, name="Ann"), (PUBLIC, SERVICE_PORT))
    bob.sendto(open_continue(BOB, name="Bob"), (CALLER, SERVICE_PORT))
    assert other.recvfrom(2048) == (open_continue(PUBLIC, name="Bob"), (PUBLIC, SERVICE_PORT))
    await_held(site, (ANN, REFLECTOR, PUBLIC), (BOB, CALLER, PUBLIC))
    for number in range(20):
        for source, to in ((peer, ann), (other, bob)):
            address = (PUBLIC, SERVICE_PORT)
            source.sendto(video(REFLECTOR, to=PUBLIC, sequence=number), address)
            host = ANN if to is ann else BOB
            payload, sender = to.recvfrom(2048)
            assert payload == video(REFLECTOR, to=host, sequence=number)
            to.sendto(video(host, sequence=number), sender)
            assert source.recvfrom(2048) == (video(PUBLIC, sequence=number), address)
    # From another port of a peer, too: a new connection, to whom that peer belongs.
    site.udp_socket("caller", 6000).sendto(b"hello", (PUBLIC, SERVICE_PORT))
    assert bob.recvfrom(2048) == (b"hello", (CALLER, 6000))
    assert received(ann, 0.2) == []


def test_a_second_caller_of_the_same_peer_gets_the_second_public_address(shared: Site) -> None:
    site = shared
    site.open_until_end.close()  # the sockets of the test before
    ann, bob = site.udp_socket("workstation-1"), site.udp_socket("workstation-2")
    peer = site.udp_socket("reflector")
    await_held(site, (ANN, REFLECTOR, PUBLIC), (BOB, CALLER, PUBLIC))
    bob.sendto(open_continue(BOB, name="Bob"), (REFLECTOR, SERVICE_PORT))
    assert peer.recvfrom(2048) == (open_continue(OTHER_PUBLIC, name="Bob"), (OTHER_PUBLIC, SERVICE_PORT))
    await_held(site, (ANN, REFLECTOR, PUBLIC), (BOB, CALLER, PUBLIC), (BOB, REFLECTOR, OTHER_PUBLIC))
    ann.sendto(video(ANN), (REFLECTOR, SERVICE_PORT))
    assert peer.recvfrom(2048) == (video(PUBLIC), (PUBLIC, SERVICE_PORT))
    peer.sendto(video(REFLECTOR, to=OTHER_PUBLIC), (OTHER_PUBLIC, SERVICE_PORT))
    assert bob.recvfrom(2048)[0] == video(REFLECTOR, to=BOB)
    assert received(ann, 0.2) == []

    bob.sendto(open_continue(BOB, message=Message.CLOSE), (REFLECTOR, SERVICE_PORT))
    await_held(site, (ANN, REFLECTOR, PUBLIC), (BOB, CALLER, PUBLIC))
    ended = [(event.binding, event.reason) for event in site.events(PortUnbound)]
    assert ended == [(3, Ending.HANG_UP)]
    site.kill("rewriter")
    site.start_rewriter()  # adopts what the kernel holds
    await_held(site, (ANN, REFLECTOR, PUBLIC), (BOB, CALLER, PUBLIC))
    site.assert_log_clean()


def test_with_one_public_address_the_second_caller_of_a_peer_is_refused() -> None:
    with ExitStack() as stack:
        site = make_site(stack, service={"sharing": "per-peer"})
        site.start()
        ann, bob = site.lab.client("workstation-1", "Ann"), site.udp_socket("workstation-2")
        reflector = site.lab.reflector("reflector")
        site.log_in(ann)
        with capture(site.lab, "workstation-2") as to_bob:
            bob.sendto(open_continue(BOB), (REFLECTOR, SERVICE_PORT))
            assert received(bob, 1.0) == []
        assert len(refusals(to_bob)) == 1
        await_held(site, (ANN, REFLECTOR, PUBLIC))
        assert_nothing_wrong(ann, reflector)
