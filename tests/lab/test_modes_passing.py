"""`passthrough`: a workstation carries the public address itself, and nothing of its calls is rewritten."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.lab.conftest import SiteMaker, make_site
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, refusals, video
from tools.lab import wait_until
from tracker.events import KernelStateRestored

TO_PUBLIC = (PUBLIC, SERVICE_PORT)
TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)


def routing(site: Site) -> str:
    """All of the gateway's rules and routes, and what it takes in from the LAN."""
    words = "ip rule; ip route show table all; cat /proc/sys/net/ipv4/conf/lan0/accept_local"
    return site.lab.run("gateway", ["sh", "-c", words]).stdout


def passed_site(new_site: SiteMaker, **words: dict[str, object]) -> Site:
    """Running, with Ann's workstation carrying the public address."""
    site = new_site(service={"policy": "fixed", "holder": ANN, "passthrough": True}, **words)
    site.lab.run("workstation-1", ["ip", "address", "add", f"{PUBLIC}/32", "dev", "eth0"])
    site.start()
    site.await_holders(ANN)
    return site


@pytest.mark.parametrize(
    "harm",
    [
        "ip rule delete priority 10",
        "ip rule delete priority 20",
        "ip route flush table 7648",
        "ip rule add priority 0 lookup local",
        "echo 0 > /proc/sys/net/ipv4/conf/lan0/accept_local",
    ],
)
def test_routing_that_somebody_takes_away_is_restored_and_recorded(passed: Site, harm: str) -> None:
    site = passed
    site.begin_test()
    ann, caller = site.udp_socket("workstation-1", address=PUBLIC), site.udp_socket("caller", 5000)
    before = routing(site)
    site.lab.run("gateway", ["sh", "-c", harm])
    assert routing(site) != before
    wait_until(lambda: routing(site) == before, "the routing restored", 5)
    caller.sendto(b"call", TO_PUBLIC)
    assert ann.recvfrom(2048) == (b"call", (CALLER, 5000))
    ann.sendto(b"answer", (CALLER, 5000))
    assert caller.recvfrom(2048) == (b"answer", TO_PUBLIC)
    wait_until(lambda: site.events(KernelStateRestored) != [], "the record of it", 5)
    assert [event.what for event in site.events(KernelStateRestored)] == ["routing"]
    assert site.holders() == [ANN]
    site.open_until_end.close()


@pytest.fixture(scope="module")
def passed() -> Iterator[Site]:
    with ExitStack() as stack:
        yield passed_site(partial(make_site, stack))


def test_a_workstation_that_carries_the_public_address_calls_and_is_called_unrewritten(
    new_site: SiteMaker,
) -> None:
    site = new_site(service={"policy": "fixed", "holder": ANN, "passthrough": True})
    site.lab.run("workstation-1", ["ip", "address", "add", f"{PUBLIC}/32", "dev", "eth0"])
    before = routing(site)
    site.start()
    site.await_holders(ANN)
    ann = site.udp_socket("workstation-1", address=PUBLIC)
    bob = site.udp_socket("workstation-2")
    caller, peer = site.udp_socket("caller", 5000), site.udp_socket("reflector")

    caller.sendto(video(CALLER, to=PUBLIC), TO_PUBLIC)
    assert ann.recvfrom(2048) == (video(CALLER, to=PUBLIC), (CALLER, 5000))
    ann.sendto(video(PUBLIC), (CALLER, 5000))
    assert caller.recvfrom(2048) == (video(PUBLIC), TO_PUBLIC)
    # A password is encrypted with the address that the program has, and decrypted with the one that is seen.
    ann.sendto(open_continue(PUBLIC, name="Ann"), TO_REFLECTOR)
    assert peer.recvfrom(2048) == (open_continue(PUBLIC, name="Ann"), TO_PUBLIC)
    peer.sendto(open_continue(REFLECTOR, entries=(PUBLIC,)), TO_PUBLIC)
    assert ann.recvfrom(2048)[0] == open_continue(REFLECTOR, entries=(PUBLIC,))

    # The gateway keeps its address for itself and for all others.
    own = site.udp_socket("gateway", 9999)
    caller.sendto(b"to the gateway", (PUBLIC, 9999))
    assert own.recvfrom(2048) == (b"to the gateway", (CALLER, 5000))
    bob.sendto(b"masqueraded", (REFLECTOR, 9998))
    other = site.udp_socket("reflector", 9998)
    bob.sendto(b"masqueraded", (REFLECTOR, 9998))
    assert other.recvfrom(2048)[1][0] == PUBLIC
    with capture(site.lab, "workstation-2") as to_bob:
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
        assert received(peer, 0.5) == []
    assert len(refusals(to_bob)) == 1

    site.kill("rewriter")
    ann.sendto(video(PUBLIC, sequence=2), TO_REFLECTOR)
    assert peer.recvfrom(2048) == (video(PUBLIC, sequence=2), TO_PUBLIC)
    caller.sendto(b"still there?", TO_PUBLIC)
    assert ann.recvfrom(2048)[0] == b"still there?"
    site.start_rewriter()
    assert [row.binding for row in site.holdings() if row.until_ns is None] == [1]
    caller.sendto(b"and now?", TO_PUBLIC)
    assert ann.recvfrom(2048)[0] == b"and now?"

    site.signal("rewriter", signal.SIGTERM)
    site.daemon("rewriter").wait(10)
    text = site.configuration.read_text()
    site.configuration.write_text(text.replace("passthrough = true", "passthrough = false"))
    site.start_rewriter()
    wait_until(lambda: routing(site) == before, "the routing as it was", 5)
    site.assert_log_clean()
