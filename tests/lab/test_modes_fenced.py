"""`on_tracker_loss = "fence"` where nothing is rewritten, and where several hold the service at once."""

from collections.abc import Callable

from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, open_continue, received, video
from tools.lab import wait_until

TO_PUBLIC = (PUBLIC, SERVICE_PORT)
TO_REFLECTOR, TO_CALLER = (REFLECTOR, SERVICE_PORT), (CALLER, SERVICE_PORT)
FENCED: dict[str, dict[str, object]] = {
    "tracker": {"lease_s": 6.0},
    "gateway": {"on_tracker_loss": "fence"},
}


def await_lease(site: Site, *, there: bool) -> None:
    wait_until(lambda: bool(site.elements("set", "lease")) is there, f"a lease: {there}", 20)


def assert_fenced(site: Site, speak: Callable[[], list[bytes]]) -> None:
    """`speak` is heard (what it returns) while there is a lease, and by nobody while there is none."""
    heard = speak()
    assert all(heard)
    with site.stopped("rewriter"):
        await_lease(site, there=False)
        assert not any(speak())
    await_lease(site, there=True)
    assert speak() == heard
    site.assert_log_clean()


def test_a_workstation_with_the_public_address_is_fenced_too(new_site: SiteMaker) -> None:
    site = new_site(service={"policy": "fixed", "holder": ANN, "passthrough": True}, **FENCED)
    site.lab.run("workstation-1", ["ip", "address", "add", f"{PUBLIC}/32", "dev", "eth0"])
    site.start()
    site.await_holders(ANN)
    await_lease(site, there=True)
    ann, peer = site.udp_socket("workstation-1", address=PUBLIC), site.udp_socket("reflector")
    caller = site.udp_socket("caller", 5000)

    def speak() -> list[bytes]:
        caller.sendto(video(CALLER), TO_PUBLIC)
        ann.sendto(video(PUBLIC), TO_REFLECTOR)
        return [b"".join(data for data, _ in received(listener, 0.3)) for listener in (ann, peer)]

    assert_fenced(site, speak)


def test_several_holders_are_fenced_together(new_site: SiteMaker) -> None:
    site = new_site(service={"sharing": "per-peer"}, **FENCED)
    site.start()
    await_lease(site, there=True)
    ann, bob = site.udp_socket("workstation-1"), site.udp_socket("workstation-2")
    peer, other = site.udp_socket("reflector"), site.udp_socket("caller")
    for host, address, to, listener in ((ann, ANN, TO_REFLECTOR, peer), (bob, BOB, TO_CALLER, other)):
        host.sendto(open_continue(address), to)
        assert listener.recvfrom(2048) == (open_continue(PUBLIC), TO_PUBLIC)

    def speak() -> list[bytes]:
        ann.sendto(video(ANN), TO_REFLECTOR)
        bob.sendto(video(BOB), TO_CALLER)
        for sender in (peer, other):
            sender.sendto(video(REFLECTOR, to=PUBLIC), TO_PUBLIC)
        every = (ann, bob, peer, other)
        return [b"".join(data for data, _ in received(listener, 0.3)) for listener in every]

    assert_fenced(site, speak)
    assert len([row for row in site.holdings() if row.until_ns is None]) == 2
