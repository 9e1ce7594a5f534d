"""Calls from inside to the gateway's public address: each host sees the other there, and itself at home."""

import socket

import pytest

from rewriter.cuseeme import Family, Header, Message, encode_audio, encode_video
from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, BOB, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, open_continue, received
from tools.lab import wait_until

TO_PUBLIC = (PUBLIC, SERVICE_PORT)
SOMEBODY = "127.0.0.5"  # as a reflector calls those it relays for


def relayed(address: str, to: str) -> bytes:
    """What a reflector at `address` sends: its own packet, which says so; only its own address is changed."""
    own = socket.inet_aton(address)
    header = Header(family=Family.REFLECTOR, address=own, destination_address=socket.inet_aton(to))
    return encode_video(header, b"of the reflector's own")


def sound(address: str, to: str, *speakers: str) -> bytes:
    header = Header(address=socket.inet_aton(address), destination_address=socket.inet_aton(to))
    return encode_audio(header, b"samples", tuple(map(socket.inet_aton, speakers)))


def assert_translated(bob: socket.socket, ann: socket.socket) -> None:
    """Everything that names one of the two names the right one on the other side."""
    for sender, its, listener, others in ((bob, BOB, ann, ANN), (ann, ANN, bob, BOB)):
        for sent, expected in (
            (relayed(its, PUBLIC), relayed(PUBLIC, others)),
            (relayed(SOMEBODY, PUBLIC), relayed(SOMEBODY, others)),
            (sound(its, PUBLIC, its, SOMEBODY, PUBLIC), sound(PUBLIC, others, PUBLIC, SOMEBODY, others)),
            (open_continue(its, entries=(PUBLIC,)), open_continue(PUBLIC, entries=(others,))),
        ):
            sender.sendto(sent, TO_PUBLIC)
            assert listener.recvfrom(2048) == (expected, TO_PUBLIC)


def begin_call(site: Site) -> tuple[socket.socket, socket.socket]:
    """Ann holds the port, and Bob's call from beside her has reached her."""
    ann, bob = site.udp_socket("workstation-1"), site.udp_socket("workstation-2")
    ann.sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    site.await_holders(ANN)
    bob.sendto(open_continue(BOB), TO_PUBLIC)
    assert ann.recvfrom(2048) == (open_continue(PUBLIC), TO_PUBLIC)
    return bob, ann


@pytest.mark.parametrize("datapath", ["kernel", "queue"])
def test_a_call_from_inside_goes_on_translated_when_the_rewriter_is_exchanged(
    new_site: SiteMaker, datapath: str
) -> None:
    site = new_site(gateway={"datapath": datapath})
    site.start()
    bob, ann = begin_call(site)
    assert_translated(bob, ann)
    site.kill("rewriter")
    site.start_rewriter()
    assert_translated(bob, ann)
    assert len(site.holdings()) == 1
    # Hanging up among themselves is none: she goes on holding the port.
    bob.sendto(open_continue(BOB, message=Message.CLOSE), TO_PUBLIC)
    assert ann.recvfrom(2048)[0] == open_continue(PUBLIC, message=Message.CLOSE)
    assert received(bob, 0.2) == []
    wait_until(lambda: site.holders() == [ANN], "the holder")
    site.assert_log_clean()
