"""Packets that are cut, too long, or lie: never a crash; translated as far as the rules say."""

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from rewriter.cuseeme import Direction, Endpoint, translate
from rewriter.packet import build_udp, udp_checksum
from tests.lab.conftest import make_site
from tests.lab.gateway_site import ANN, BOB, CALLER, PUBLIC, REFLECTOR, Site
from tests.lab.traffic import SERVICE_PORT, capture, open_continue, received, udp_to, video
from tools.lab import wait_until
from tracker.client import ask
from tracker.orders import ReleaseBinding, Withdrawing

TO_REFLECTOR = (REFLECTOR, SERVICE_PORT)
TO_PUBLIC = (PUBLIC, SERVICE_PORT)
PRIVATE_END = Endpoint.parse(f"{ANN}:{SERVICE_PORT}")
PUBLIC_END = Endpoint.parse(f"{PUBLIC}:{SERVICE_PORT}")
REFLECTOR_END = Endpoint.parse(f"{REFLECTOR}:{SERVICE_PORT}")


@dataclass
class Talk:
    """A site whose port Ann holds, with sockets of her and of the reflector; it serves several tests."""

    site: Site
    ann: socket.socket
    peer: socket.socket

    def sent_out(self, payload: bytes) -> bytes:
        self.ann.sendto(payload, TO_REFLECTOR)
        return self.peer.recvfrom(65535)[0]

    def sent_in(self, payload: bytes) -> bytes:
        self.peer.sendto(payload, TO_PUBLIC)
        return self.ann.recvfrom(65535)[0]

    def assert_alive(self) -> None:
        """Worker and binding are as before, an OpenContinue crosses through the worker both ways."""
        self.site.assert_running()
        assert self.site.holders() == [ANN]
        received(self.ann, 0.05)
        received(self.peer, 0.05)
        assert self.sent_out(open_continue(ANN)) == open_continue(PUBLIC)
        named = open_continue(REFLECTOR, entries=(PUBLIC,))
        assert self.sent_in(named) == open_continue(REFLECTOR, entries=(ANN,))


@pytest.fixture(scope="module")
def talk() -> Iterator[Talk]:
    with ExitStack() as stack:
        site = make_site(stack)
        site.start()
        made = Talk(site, site.udp_socket("workstation-1"), site.udp_socket("reflector"))
        made.sent_out(open_continue(ANN))
        site.await_holders(ANN)
        yield made


def random_payload(chance: random.Random, *, is_talk: bool) -> bytes:
    """A payload whose fields are often the ones that a NAT looks at, and whose counts often lie."""
    addresses = [socket.inet_aton(text) for text in (ANN, PUBLIC, REFLECTOR, "127.0.0.2", "0.0.0.0")]
    ports = [SERVICE_PORT, 7649, 0xE01D, 0, 5]
    fields = struct.pack(
        "!HH4sHH4sIHHH",
        chance.choice([0, 1, 2, 0xFFFF]),
        chance.choice(ports),
        chance.choice(addresses),
        chance.choice([0, 1, 2]),
        chance.choice(ports),
        chance.choice(addresses),
        chance.getrandbits(32),
        1 if is_talk else chance.choice([0, 1, 2, 20]),
        101 if is_talk else chance.choice([1, 2, 3, 3, 3, 100, 105, 200, 0xFFFF]),
        chance.getrandbits(16),
    )
    count = chance.choice([0, 1, 2, 5, 63, 0xFFFF])
    body = struct.pack("!H", count) if is_talk else bytes([count & 0xFF])
    body += chance.randbytes(28 if is_talk else 7)
    body += b"".join(
        chance.choice(addresses) + (chance.randbytes(8) if is_talk else b"")
        for _ in range(chance.randrange(30))
    )
    payload = fields + body + chance.randbytes(chance.randrange(4))
    return payload[: chance.randrange(len(payload) + 1)] if chance.random() < 0.3 else payload


@pytest.mark.parametrize(("is_talk", "count"), [(True, 60), (False, 400)])
def test_random_packets_cross_as_the_rules_say_to_the_byte(
    talk: Talk, chance: random.Random, is_talk: bool, count: int
) -> None:
    for _ in range(count):
        payload = random_payload(chance, is_talk=is_talk)
        assert talk.sent_out(payload) == translate(payload, Direction.OUT, PUBLIC_END, PRIVATE_END), (
            payload.hex()
        )
        assert talk.sent_in(payload) == translate(payload, Direction.IN, PUBLIC_END, PRIVATE_END), (
            payload.hex()
        )
        if is_talk:
            time.sleep(0.025)  # below the rate up to which the worker reads them
    talk.assert_alive()


@pytest.mark.parametrize("entries", [3, 118, 130, 1000, 5000])
def test_open_continues_of_any_length_cross_through_the_worker(talk: Talk, entries: int) -> None:
    others = tuple(f"127.0.{number // 250}.{2 + number % 250}" for number in range(entries - 1))
    out = open_continue(ANN, entries=(*others, PUBLIC))
    assert talk.sent_out(out) == translate(out, Direction.OUT, PUBLIC_END, PRIVATE_END)
    into = open_continue(REFLECTOR, entries=(*others, PUBLIC))
    assert talk.sent_in(into) == open_continue(REFLECTOR, entries=(*others, ANN))


Lie = Callable[[Endpoint, Endpoint, bytes], bytes]


def with_length(udp_length: int) -> Lie:
    """A packet whose UDP header names another length, its checksum right but for that."""

    def lie(source: Endpoint, destination: Endpoint, payload: bytes) -> bytes:
        packet = build_udp(source, destination, payload)
        packet = packet[:24] + udp_length.to_bytes(2, "big") + packet[26:]
        checksum = udp_checksum(source.address, destination.address, packet[20:])
        return packet[:26] + checksum.to_bytes(2, "big") + packet[28:]

    return lie


def altered(offset: int, octets: bytes) -> Lie:
    """A packet with other octets somewhere; the kernel mends the IP header's checksum."""

    def lie(source: Endpoint, destination: Endpoint, payload: bytes) -> bytes:
        packet = build_udp(source, destination, payload)
        return packet[:offset] + octets + packet[offset + len(octets) :]

    return lie


def cut(length: int) -> Lie:
    return lambda source, destination, payload: build_udp(source, destination, payload)[:length]


LIES: dict[str, Lie] = {
    "UDP length beyond the packet": with_length(1000),
    "UDP length below the packet's": with_length(40),
    "UDP length 8": with_length(8),
    "UDP length 0": with_length(0),
    "UDP length 65535": with_length(0xFFFF),
    "wrong UDP checksum": altered(26, b"\x12\x34"),
    "cut in the UDP header": cut(24),
    "nothing after the IP header": cut(20),
    "a first fragment alone": altered(6, b"\x20\x00"),
    "a later fragment alone": altered(6, b"\x00\x40"),
    "another protocol": altered(9, b"\x2f"),
    "destination port 0": lambda source, destination, payload: build_udp(
        source, destination._replace(port=0), payload
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_packets_do_no_harm_in_a_call(talk: Talk, lie: str) -> None:
    out, caller = talk.site.raw_socket("workstation-1"), talk.site.raw_socket("reflector")
    for payload in (open_continue(ANN, entries=(PUBLIC, REFLECTOR)), video(ANN, to=PUBLIC)):
        out.sendto(LIES[lie](PRIVATE_END, REFLECTOR_END, payload), (REFLECTOR, 0))
        caller.sendto(LIES[lie](REFLECTOR_END, PUBLIC_END, payload), (PUBLIC, 0))
    time.sleep(0.05)
    talk.assert_alive()


@pytest.mark.parametrize("lie", LIES)
def test_lying_packets_of_a_host_that_holds_nothing_claim_nothing_and_do_not_leave(
    claimless: Site, lie: str
) -> None:
    site = claimless
    bob = site.raw_socket("workstation-2")
    source = Endpoint.parse(f"{BOB}:{SERVICE_PORT}")
    with capture(site.lab, "internet", "uplink0") as out:
        for payload in (open_continue(BOB), video(BOB)):
            bob.sendto(LIES[lie](source, REFLECTOR_END, payload), (REFLECTOR, 0))
        time.sleep(0.15)
    assert udp_to(out, REFLECTOR) == []
    assert site.views() == ([], [], [])
    site.assert_running()
    with let_go(site) as honest:
        honest.sendto(open_continue(BOB), TO_REFLECTOR)
        site.await_holders(BOB, timeout_s=1.5)  # the lie did not keep the honest one waiting


@contextmanager
def let_go(site: Site) -> Iterator[socket.socket]:
    """Bob's socket; at the end he holds nothing, and what he sends to the reflector may claim again.

    An operator ends it: for five seconds after a hang-up only a new call to that peer would claim.
    """
    with site.udp_socket("workstation-2") as bob:
        yield bob
        order = ReleaseBinding(site.holdings()[-1].binding, "the next test")
        assert isinstance(ask(f"ipc://{site.directory}/operator.ipc", "test", order, 5.0), Withdrawing)
        site.await_holders()


@pytest.fixture(scope="module")
def claimless() -> Iterator[Site]:
    with ExitStack() as stack:
        site = make_site(stack)
        site.start()
        yield site


@pytest.mark.parametrize("payload", [b"", b"x", b"hello", bytes(25), bytes(26), bytes(2000)])
def test_whatever_goes_to_the_control_port_claims_and_crosses_unchanged(
    claimless: Site, payload: bytes
) -> None:
    site = claimless
    with let_go(site) as bob, site.udp_socket("reflector") as peer:
        bob.sendto(payload, TO_REFLECTOR)
        assert peer.recvfrom(4096) == (payload, TO_PUBLIC)
        site.await_holders(BOB)


def test_a_flood_of_garbage_from_all_sides_leaves_the_gateway_working(
    talk: Talk, chance: random.Random
) -> None:
    site = talk.site
    bob, caller = site.raw_socket("workstation-2"), site.raw_socket("caller")
    bob_end, caller_end = Endpoint.parse(f"{BOB}:{SERVICE_PORT}"), Endpoint.parse(f"{CALLER}:7000")
    for _ in range(2000):
        make = chance.choice([build_udp, *LIES.values()])
        payload = random_payload(chance, is_talk=chance.random() < 0.5)
        bob.sendto(make(bob_end, REFLECTOR_END, payload), (REFLECTOR, 0))
        caller.sendto(make(caller_end, PUBLIC_END, payload), (PUBLIC, 0))
    wait_until(lambda: sum(line.waiting for line in site.queues().values()) == 0, "queues read")
    time.sleep(0.3)
    talk.assert_alive()
    site.await_holders(ANN)
    site.assert_log_clean()
