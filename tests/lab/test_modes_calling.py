"""Who may call in, from where, and what runs beside it; port triggering for other programs."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab.conftest import make_site
from tests.lab.gateway_site import (
    ANN,
    BOB,
    CALLER,
    PUBLIC,
    REFLECTOR,
    Site,
    assert_nothing_wrong,
    await_video_both_ways,
)
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, refusals, video
from tools.lab import wait_until

SERVICES = """
[services.friends]
control = ["udp/9001"]
forward = ["udp/9001"]
callers = ["198.51.100.0/25", "198.51.100.128/25"]
[services.known]
control = ["udp/9002"]
forward = ["udp/9002"]
callers = "contacted"
[services.few]
control = ["udp/9003"]
forward = ["udp/9003"]
new_callers_per_minute = 3
[services.closed]
control = ["udp/9004"]
forward = ["udp/9004"]
unsolicited = "nobody"
[services.realaudio]
profile = "realaudio"
[services.irc]
profile = "irc"
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        made = make_site(stack)
        made.configuration.write_text(made.configuration.read_text() + SERVICES)
        made.start()
        yield made


def held_by_ann(site: Site, port: int, service: str) -> socket.socket:
    ann = site.udp_socket("workstation-1", port)
    ann.sendto(b"claim", (REFLECTOR, port))
    wait_until(lambda: site.holders(service) == [ANN], "the holder", 10)
    wait_until(lambda: site.counters()[f"{service}_sent"] > 0, "his first packet", 10)
    return ann


def test_only_callers_of_the_networks_that_are_named_reach_the_holder(site: Site) -> None:
    ann = held_by_ann(site, 9001, "friends")
    friend, stranger = site.udp_socket("caller", 6000), site.udp_socket("reflector", 6000)
    stranger.sendto(b"stranger", (PUBLIC, 9001))
    friend.sendto(b"friend", (PUBLIC, 9001))
    assert received(ann) == [(b"friend", (CALLER, 6000))]
    assert site.counters()["friends_turned_away"] == 1
    ann.sendto(b"I call whom I like", (REFLECTOR, 6000))
    assert stranger.recvfrom(2048)[0] == b"I call whom I like"


def test_only_peers_that_the_holder_has_contacted_call_in_from_any_port(site: Site) -> None:
    ann = held_by_ann(site, 9002, "known")
    contacted, stranger = site.udp_socket("reflector", 6001), site.udp_socket("caller", 9002)
    stranger.sendto(b"too early", (PUBLIC, 9002))
    contacted.sendto(b"at last", (PUBLIC, 9002))
    assert received(ann) == [(b"at last", (REFLECTOR, 6001))]
    ann.sendto(b"now you too", (CALLER, 9002))
    assert stranger.recvfrom(2048) == (b"now you too", (PUBLIC, 9002))
    site.udp_socket("caller", 6002).sendto(b"thank you", (PUBLIC, 9002))
    assert ann.recvfrom(2048) == (b"thank you", (CALLER, 6002))


def test_new_callers_are_limited_and_calls_in_progress_are_not(site: Site) -> None:
    ann = held_by_ann(site, 9003, "few")
    first = site.udp_socket("caller", 6100)
    first.sendto(b"first", (PUBLIC, 9003))
    for port in range(6101, 6110):
        site.udp_socket("caller", port).sendto(b"flood", (PUBLIC, 9003))
    for _ in range(20):
        first.sendto(b"first", (PUBLIC, 9003))
    heard = received(ann)
    assert len({source for _, source in heard}) == 3
    assert len([payload for payload, _ in heard if payload == b"first"]) == 21
    assert site.counters()["few_callers"] == 3
    assert site.counters()["few_turned_away"] == 7


def test_a_service_that_nobody_is_called_at_still_answers_its_holder(site: Site) -> None:
    ann = held_by_ann(site, 9004, "closed")
    peer = site.udp_socket("caller", 9004)
    peer.sendto(b"you did not call me", (PUBLIC, 9004))
    ann.sendto(b"hello", (CALLER, 9004))
    assert peer.recvfrom(2048) == (b"hello", (PUBLIC, 9004))
    peer.sendto(b"hello back", (PUBLIC, 9004))
    assert received(ann) == [(b"hello back", (CALLER, 9004))]


def served(site: Site, place: str, port: int) -> socket.socket:
    address = site.lab.addresses[place]
    listener = site.lab.within(place, lambda: socket.create_server((address, port)))
    listener.settimeout(6)
    return site.open_until_end.enter_context(listener)


def connected(site: Site, place: str, to: tuple[str, int]) -> socket.socket:
    def connect() -> socket.socket:
        return socket.create_connection(to, timeout=6)

    return site.open_until_end.enter_context(site.lab.within(place, connect))


@pytest.mark.parametrize("port", [554, 7070])
def test_realaudio_a_server_sends_sound_to_whoever_is_connected_to_it(site: Site, port: int) -> None:
    served(site, "reflector", port)
    player = connected(site, "workstation-1", (REFLECTOR, port))
    wait_until(lambda: site.holders("realaudio") == [ANN], "the holder", 10)
    sound = site.udp_socket("workstation-1", 7100 + port % 10)
    site.udp_socket("reflector", 30000 + port).sendto(b"sound", (PUBLIC, 7100 + port % 10))
    assert sound.recvfrom(2048) == (b"sound", (REFLECTOR, 30000 + port))
    with pytest.raises(OSError, match="refused"):  # the control port is not forwarded
        connected(site, "caller", (PUBLIC, port))
    player.close()


def test_irc_a_server_asks_who_has_connected_to_it(site: Site) -> None:
    served(site, "reflector", 6667)
    connected(site, "workstation-2", (REFLECTOR, 6667))
    wait_until(lambda: site.holders("irc") == [BOB], "the holder", 10)
    ident = served(site, "workstation-2", 113)
    server = connected(site, "reflector", (PUBLIC, 113))
    accepted, source = ident.accept()
    with accepted:
        assert source[0] == REFLECTOR
        server.sendall(b"6667, 40000\r\n")
        assert accepted.recv(100) == b"6667, 40000\r\n"


def test_a_call_from_inside_to_the_gateways_own_address_reaches_the_holder(site: Site) -> None:
    ann, bob = site.udp_socket("workstation-1"), site.udp_socket("workstation-2")
    ann.sendto(open_continue(ANN, name="Ann"), (REFLECTOR, SERVICE_PORT))
    wait_until(lambda: site.holders() == [ANN], "the holder", 10)
    site.begin_test()
    to_public = (PUBLIC, SERVICE_PORT)
    bob.sendto(video(BOB, to=PUBLIC), to_public)
    assert ann.recvfrom(2048) == (video(PUBLIC, to=ANN), to_public)
    ann.sendto(video(ANN, to=PUBLIC), to_public)
    assert bob.recvfrom(2048) == (video(PUBLIC, to=BOB), to_public)
    bob.sendto(open_continue(BOB, name="Bob", entries=("9.9.9.9", PUBLIC)), to_public)
    assert ann.recvfrom(2048)[0] == open_continue(PUBLIC, name="Bob", entries=("9.9.9.9", ANN))
    ann.sendto(open_continue(ANN, name="Ann", entries=(PUBLIC,)), to_public)
    assert bob.recvfrom(2048)[0] == open_continue(PUBLIC, name="Ann", entries=(BOB,))
    assert site.counters()["cuseeme_callers"] == 1
    assert site.claims_queue().packets == 0


@pytest.fixture(scope="module")
def local() -> Iterator[Site]:
    with ExitStack() as stack:
        keep: dict[str, object] = {"keep_source_ports": ["udp/9100-9109", "tcp/9100-9109"]}
        made = make_site(stack, service={"unsolicited": "local"}, gateway=keep)
        made.start()
        yield made


def test_a_reflector_on_the_gateway_runs_beside_a_client_behind_it(local: Site) -> None:
    site = local
    on_gateway = site.lab.reflector("gateway")
    outside = site.lab.reflector("reflector")
    caller = site.lab.client("caller", "Zoe")
    ann = site.lab.client("workstation-1", "Ann")
    caller.wait_for("login", since=caller.command(f"call {PUBLIC}"), timeout_s=15)
    ann.wait_for("login", since=ann.command(f"call {REFLECTOR}"), timeout_s=15)
    site.await_holders(ANN)
    other = site.lab.client("reflector", "Olga", "--port", "7650")
    other.wait_for("login", since=other.command(f"call {REFLECTOR}"), timeout_s=15)
    ann.wait_for("watched", name="Olga", timeout_s=15)
    await_video_both_ways(ann, other)
    assert_nothing_wrong(on_gateway, outside, caller, ann, other)


def test_a_call_that_would_take_a_tuple_of_the_gateways_reflector_is_refused(local: Site) -> None:
    site = local
    on_gateway, caller = site.udp_socket("gateway", 7649), site.udp_socket("caller", 7649)
    ann = site.udp_socket("workstation-1", 7649)
    site.udp_socket("workstation-1", 0).sendto(open_continue(ANN), (REFLECTOR, SERVICE_PORT))
    site.await_holders(ANN)
    caller.sendto(b"hello", (PUBLIC, 7649))
    assert on_gateway.recvfrom(2048) == (b"hello", (CALLER, 7649))
    with capture(site.lab, "workstation-1") as to_ann:
        for _ in range(3):
            ann.sendto(video(ANN), (CALLER, 7649))
        assert received(caller) == []
    assert len(refusals(to_ann)) == 2
    on_gateway.sendto(b"the gateway's call goes on", (CALLER, 7649))
    assert caller.recvfrom(2048)[0] == b"the gateway's call goes on"


def test_two_workstations_keep_their_source_ports_at_once_and_what_cannot_is_refused(local: Site) -> None:
    site = local
    peer, other = site.udp_socket("reflector", 9100), site.udp_socket("caller", 9100)
    ann, bob = site.udp_socket("workstation-1", 5100), site.udp_socket("workstation-2", 5100)
    ann.sendto(b"Ann", (REFLECTOR, 9100))
    assert peer.recvfrom(2048) == (b"Ann", (PUBLIC, 5100))
    bob.sendto(b"Bob", (CALLER, 9100))  # the same port to another peer: no harm
    assert other.recvfrom(2048) == (b"Bob", (PUBLIC, 5100))
    with capture(site.lab, "workstation-2") as to_bob:
        for _ in range(3):
            bob.sendto(b"Bob", (REFLECTOR, 9100))
        assert received(peer) == []
    assert len(refusals(to_bob)) == 2  # the first one was what showed that it can't be kept
    ann.sendto(b"Ann again", (REFLECTOR, 9100))
    assert peer.recvfrom(2048) == (b"Ann again", (PUBLIC, 5100))
