"""What else lives on a gateway: other services, other people's marks and connections, floods of strangers."""

import socket
import time

from rewriter.cuseeme import Message
from rewriter.packet import Endpoint, build_udp
from tests.lab.conftest import SiteMaker
from tests.lab.gateway_site import (
    ANN,
    BOB,
    CALLER,
    PATIENCE_S,
    PUBLIC,
    REFLECTOR,
    Site,
    assert_nothing_wrong,
    await_video_both_ways,
    conference,
)
from tests.lab.traffic import SERVICE_PORT, open_continue, received, video
from tools.lab import wait_until
from tracker.events import PortBound, WorkerLost

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)
SECOND_SERVICE = """
[services.game]
profile = "plain"
control = ["udp/5000", "tcp/6000"]
forward = ["udp/5000-5010", "tcp/6000-6001"]
idle_s = 1.0
"""
WITNESS = """
table ip witness {
  counter seen { }
  counter ours { }
  counter theirs { }
  chain before {
    type filter hook prerouting priority -150; policy accept;
    udp dport 7648 meta mark set meta mark | 0x1
  }
  chain later {
    type filter hook postrouting priority 300; policy accept;
    udp dport 7648 counter name seen
    udp dport 7648 meta mark & 0x3f000000 != 0 counter name ours
    udp dport 7648 meta mark & 0x1 == 1 counter name theirs
  }
}
"""


def test_two_services_are_held_independently_and_a_plain_one_is_not_rewritten(new_site: SiteMaker) -> None:
    site = new_site()
    with site.configuration.open("a") as file:
        file.write(SECOND_SERVICE)
    site.start()
    ann, bob = site.udp_socket("workstation-1"), site.udp_socket("workstation-2", 5000)
    game = site.udp_socket("caller", 5000)
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    site.await_holders(ANN)
    bob.sendto(open_continue(BOB), (CALLER, 5000))
    assert game.recvfrom(2048) == (open_continue(BOB), (PUBLIC, 5000))
    with site.udp_socket("workstation-2", 5010) as other_port:
        game.sendto(open_continue(CALLER, entries=(PUBLIC,)), (PUBLIC, 5010))
        assert other_port.recvfrom(2048)[0] == open_continue(CALLER, entries=(PUBLIC,))
    assert (site.holders(), site.holders("game")) == ([ANN], [BOB])
    with site.udp_socket("workstation-2") as both:  # of the other service he is refused
        both.sendto(open_continue(BOB), TO_REFLECTOR)
        ann.sendto(open_continue(ANN, message=Message.CLOSE), TO_REFLECTOR)
        wait_until(lambda: site.holders() == [], "the end of one binding")

        def has_both() -> bool:
            both.sendto(open_continue(BOB), TO_REFLECTOR)
            return site.holders() == [BOB]

        wait_until(has_both, "the other service's holder has both", PATIENCE_S)
        wait_until(lambda: site.holders("game") == [], "the end of the other binding")
        with site.udp_socket("reflector") as peer:
            both.sendto(video(BOB), TO_REFLECTOR)
            assert received(peer)[-1] == (video(PUBLIC), TO_PUBLIC)
    assert_claimed_by_tcp(site)
    site.assert_running()
    site.assert_log_clean()


def assert_claimed_by_tcp(site: Site) -> None:
    """A control port may be one of TCP: then a connection claims, and keeps its source port too."""

    def call() -> socket.socket:
        return socket.create_connection((CALLER, 6000), timeout=3, source_address=(ANN, 6000))

    with (
        site.lab.within("caller", lambda: socket.create_server((CALLER, 6000))) as listener,
        site.lab.within("workstation-1", call),
    ):
        accepted, source = listener.accept()
        accepted.close()
        assert source == (PUBLIC, 6000)
    assert site.holders("game") == [ANN]


def test_other_peoples_marks_survive_and_ours_end_with_us(site: Site) -> None:
    site.lab.run("gateway", ["nft", "-f", "-"], stdin_text=WITNESS)
    site.open_until_end.callback(site.lab.run, "gateway", ["nft", "delete", "table", "ip", "witness"])
    places = ("workstation-1", "workstation-2", "reflector", "caller")
    ann, bob, peer, caller = (site.udp_socket(place) for place in places)
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    site.await_holders(ANN)
    for _ in range(10):
        ann.sendto(open_continue(ANN), TO_REFLECTOR)
        ann.sendto(video(ANN), TO_REFLECTOR)
        peer.sendto(open_continue(REFLECTOR, entries=(PUBLIC,)), TO_PUBLIC)
        caller.sendto(video(CALLER, to=PUBLIC), TO_PUBLIC)
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
        time.sleep(0.02)
    assert (len(received(ann, 0.2)), len(received(peer, 0.2))) == (20, 21)
    listed = site.nft("list", "counters", "table", "ip", "witness")
    counted = {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}
    assert counted == {"seen": 41, "ours": 0, "theirs": 41}


def test_a_call_outlives_the_loss_of_all_connections(site: Site) -> None:
    reflector, ann, zoe = conference(site)
    for client in (ann, zoe):
        client.command("video 200 100")
    for _ in range(8):
        site.lab.run("gateway", ["conntrack", "-F"])
        time.sleep(0.25)
    for client in (ann, zoe):
        client.wait_for("sent", kind="video")
        assert client.counters()["received_video"] > 200  # of 220: a packet may meet the very moment
    await_video_both_ways(ann, zoe)
    assert len(reflector.seen("login")) == 2
    assert_nothing_wrong(ann, zoe, reflector)
    ann.command("hangup")
    site.await_holders()


def test_a_caller_whose_port_cannot_be_kept_is_dropped_not_heard_from_another_port(site: Site) -> None:
    ann, peer = site.udp_socket("workstation-1"), site.udp_socket("reflector")
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    peer.recvfrom(2048)
    site.lab.run("gateway", ["conntrack", "-F"])
    # As if both had opened to each other at once: the peer's packet finds no connection, but its tuple taken.
    taken = ["--orig-src", str(ANN), "--orig-dst", REFLECTOR, "--orig-port-src", "7648"]
    taken += ["--orig-port-dst", "7648", "--src-nat", f"{PUBLIC}:9999"]
    site.lab.run("gateway", ["conntrack", "-I", "-p", "udp", "-t", "60", *taken])
    peer.sendto(video(REFLECTOR, to=PUBLIC), TO_PUBLIC)
    assert received(ann, 0.5) == []
    site.lab.run("gateway", ["conntrack", "-F"])
    peer.sendto(video(REFLECTOR, to=PUBLIC), TO_PUBLIC)
    [_] = received(ann, 0.5)


def test_what_slipped_past_flushed_rules_is_no_way_in_afterwards(site: Site) -> None:
    places = ("workstation-1", "workstation-2", "reflector")
    ann, bob, peer = (site.udp_socket(place) for place in places)
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    site.await_holders(ANN)
    peer.recvfrom(2048)
    with site.stopped("rewriter"):
        site.lab.run("gateway", ["nft", "delete", "table", "ip", "porthold"])
        bob.sendto(open_continue(BOB), TO_REFLECTOR)
        _, source = peer.recvfrom(2048)
        assert source[0] == PUBLIC
    wait_until(lambda: site.holders() == [ANN], "the table restored")
    received(bob, 0.05)
    peer.sendto(b"to whom?", source)
    assert received(bob, 0.3) == []


def test_a_flood_of_claims_from_strangers_breaks_neither_call_nor_lease(site: Site) -> None:
    ann, peer, strangers = (
        site.udp_socket("workstation-1"),
        site.udp_socket("reflector"),
        site.raw_socket("workstation-2"),
    )
    ann.sendto(open_continue(ANN), TO_REFLECTOR)
    site.await_holders(ANN)
    received(peer, 0.05)
    to_reflector = Endpoint.parse(f"{REFLECTOR}:{SERVICE_PORT}")
    for number in range(1000):
        stranger = Endpoint.parse(f"10.{number // 250}.{number % 250}.7:{SERVICE_PORT}")
        strangers.sendto(build_udp(stranger, to_reflector, open_continue(BOB)), (REFLECTOR, 0))
    peer.settimeout(10)
    for number in range(8):
        ann.sendto(open_continue(ANN, sequence=number), TO_REFLECTOR)
        assert peer.recvfrom(2048)[0] == open_continue(PUBLIC, sequence=number)
        time.sleep(0.25)
    site.await_holders(ANN)
    assert (len(site.events(PortBound)), site.events(WorkerLost)) == (1, [])
    site.assert_running()
    site.assert_log_clean()
