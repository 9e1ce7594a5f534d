"""TCP: who has an authorised key is served as what it says, and nobody else; real processes, real sockets."""

import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import zmq

from tests.crash.place import Place, answers, claim, hole, opening, settle
from tests.crash.remote_site import Site, raw_dealer
from tracker.client import Credentials
from tracker.clock import read_clock
from tracker.events import KernelStateRestored, PortBound, SessionOpened
from tracker.keyring import TRACKER_ROLE, generate, revoke
from tracker.messages import (
    ClaimGranted,
    GetStatus,
    MakeCheckpoint,
    NoCheckpoint,
    NotAllowed,
    Request,
    SessionGranted,
    Status,
    encode_request,
)
from tracker.roles import Role


@pytest.fixture
def site(place: Place) -> Site:
    return Site(place)


def test_a_worker_by_tcp_holds_ports_and_the_log_names_its_key(site: Site) -> None:
    credentials = site.key("gw-key", Role.WORKER, "gw")
    site.place.start()
    client = site.client(credentials)
    (opened,) = settle(client, opening())
    assert isinstance(opened.reply, SessionGranted)
    (granted,) = settle(client, claim(opened.reply.epoch, 5))
    assert isinstance(granted.reply, ClaimGranted)
    client.close()
    sources = {type(event): source for event, source in site.place.sourced_events()}
    assert (sources[SessionOpened], sources[PortBound]) == ("gw-key", "gw-key")
    site.place.check()


def test_each_key_says_what_its_role_may_and_nothing_else(site: Site) -> None:
    worker = site.key("w1", Role.WORKER, "gw")
    reader = site.key("ruth", Role.READER)
    operator = site.key("olga", Role.OPERATOR)
    site.place.start()
    assert isinstance(site.say(reader, GetStatus()), Status)
    assert site.say(reader, MakeCheckpoint()) == NotAllowed("MakeCheckpoint is for operator, ruth is reader")
    assert site.say(reader, opening()) == NotAllowed("OpenSession is for worker, ruth is reader")
    assert site.say(operator, MakeCheckpoint()) == NoCheckpoint("no key signs this log")
    assert site.say(worker, GetStatus()) == NotAllowed("GetStatus is for operator and reader, w1 is worker")
    assert site.say(worker, opening("gw2")) == NotAllowed("w1 speaks for gw, not for gw2")
    assert site.say(worker, opening(), "w2") == NotAllowed("the key of w1 speaks under that name, not as w2")
    counted = {name: count for name, count in site.counters().items() if name.startswith("refused")}
    assert counted == {"refused: role": 3, "refused: gateway": 1, "refused: name": 1}
    assert not any(isinstance(event, SessionOpened) for event in site.place.events())


def test_nobody_on_this_machine_bears_the_name_of_a_key(site: Site) -> None:
    site.key("w1", Role.WORKER, "gw")
    site.place.start()
    client = site.place.client()
    client.submit(opening(), read_clock())
    answers(client, lambda: client.denied is not None)
    assert client.denied is not None
    assert "w1 is the name of a key" in client.denied
    client.close()


def test_a_key_is_known_as_soon_as_it_is_authorised_and_not_heard_once_it_is_revoked(site: Site) -> None:
    credentials = site.key("w1", Role.WORKER, "gw", known=False)
    site.place.start()
    client = site.client(credentials)
    client.submit(opening(), read_clock())
    answers(client, lambda: client.denied is not None)
    assert client.denied is not None
    assert "does not know our key" in client.denied
    assert site.counters()["refused: unknown key"] >= 1
    site.authorise(credentials.own, Role.WORKER, "gw")
    answers(client, lambda: client.pending == 0)
    assert client.denied is None
    revoke(site.authority, "w1")
    client.submit(hole(1), read_clock())
    client.submit(hole(2), read_clock())

    def unheard() -> bool:
        client.tick(read_clock())
        return site.counters().get("refused: revoked key", 0) > 1

    # What came within the second before the look is taken; from then on nothing is.
    time.sleep(1.5)
    client.receive(read_clock())
    client.submit(hole(3), read_clock())
    site.wait(unheard)
    client.receive(read_clock())
    assert client.pending == 1
    client.close()


def test_a_worker_finds_the_tracker_again_after_its_restart(site: Site) -> None:
    credentials = site.key("w1", Role.WORKER, "gw")
    site.place.start()
    client = site.client(credentials)
    settle(client, opening())
    site.place.kill()
    client.submit(hole(1), read_clock())
    site.place.start()
    answers(client, lambda: client.pending == 0)
    client.close()


def test_who_does_not_speak_curve_is_hung_up_on_while_others_are_served(site: Site) -> None:
    credentials = site.key("w1", Role.WORKER, "gw")
    site.place.start()
    client = site.client(credentials)
    settle(client, opening())
    chance = random.Random(5)
    with raw_dealer(site.endpoint) as plain:
        plain.send(encode_request(Request("w1", 7, 1, 0, 0, 5, opening())))
        settle(client, hole(1))
        site.wait(lambda: site.counters().get("refused: handshake", 0) >= 1)
        assert not plain.poll(100)
    impostor = Credentials(credentials.own, generate(TRACKER_ROLE, "another").public)
    assert isinstance(site.say(impostor, opening()), NotAllowed | None)
    half_open = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(20)]
    for number in range(100):
        with socket.create_connection(("127.0.0.1", site.port)) as shouting:
            greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" if number % 2 else b""
            shouting.sendall(greeting + chance.randbytes(chance.randrange(1, 500)))
    settle(client, hole(2))
    site.wait(lambda: site.counters()["connections: tcp"] > 120)
    for waiting in half_open:  # they are hung up on, without having said a word
        waiting.settimeout(20)
        while waiting.recv(100):
            pass
        waiting.close()
    settle(client, hole(3))
    client.close()
    code, said = site.place.kill(signal.SIGTERM)
    assert code == 0
    assert 1 <= said.count("refused: handshake") <= 4
    site.place.check()


def test_one_door_has_room_for_so_many_connections(site: Site) -> None:
    reader = site.key("ruth", Role.READER)
    worker = site.key("w1", Role.WORKER, "gw")
    site.limit(connections=4)
    site.place.start()
    client = site.client(worker)
    settle(client, opening())
    with ExitStack() as stack:
        crowd = [stack.enter_context(raw_dealer(site.endpoint, reader)) for _ in range(8)]
        for one in crowd:
            one.send(encode_request(Request("ruth", 0, 0, 0, 0, 5, GetStatus())))
        site.wait(lambda: site.counters().get("refused: connections", 0) >= 5)
        settle(client, hole(1))
        assert sum(bool(one.poll(0)) for one in crowd) <= 3
    # They are gone: there is room again.
    site.wait(lambda: isinstance(site.say(reader, GetStatus()), Status))
    client.close()


def test_whoever_says_too_much_is_not_heard_for_a_while_and_others_are(site: Site) -> None:
    reader = site.key("ruth", Role.READER)
    site.limit(other_messages_per_s=100)
    site.place.start()
    question = encode_request(Request("ruth", 0, 0, 0, 0, 5, GetStatus()))
    with raw_dealer(site.endpoint, reader) as noisy:
        for _ in range(3000):
            noisy.send(question)
        site.wait(lambda: site.counters().get("refused: rate", 0) >= 1000)
        client = site.client(site.key("w1", Role.WORKER, "gw"))
        settle(client, opening(), hole(1))
        client.close()


def test_one_noisy_peer_does_not_starve_a_quiet_one(site: Site) -> None:
    site.limit(worker_messages_per_s=1000000)
    noisy_key, quiet_key = site.key("noisy", Role.WORKER, "gw"), site.key("quiet", Role.WORKER, "gw2")
    site.place.start()
    quiet = site.client(quiet_key)
    settle(quiet, opening("gw2"))
    with noise(site.endpoint, noisy_key) as sent:
        site.wait(lambda: len(sent) > 1000)
        for number in range(20):
            settle(quiet, KernelStateRestored("gw2", 1, "quiet", number, number))
    quiet.close()
    sources = [
        source for event, source in site.place.sourced_events() if isinstance(event, KernelStateRestored)
    ]
    # Each is asked after the answer to the one before, and more was sent all the time than is served at once.
    assert sources.count("quiet") == 20
    assert sources.count("noisy") > 1000


@contextmanager
def noise(endpoint: str, key: Credentials) -> Iterator[list[int]]:
    """A worker that only sends, as fast as it can, while the block lasts; what it has sent."""
    sent: list[int] = []
    ended = threading.Event()

    def run() -> None:
        with raw_dealer(endpoint, key) as noisy:
            while not ended.is_set():
                number = len(sent) + 1
                noisy.send(encode_request(Request("noisy", 7, number, number - 1, 0, 5, hole(number))))
                sent.append(number)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()


class Tunnel:
    """Carries TCP to the tracker, from wherever it is told to, until it falls silent without a word."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.silent = threading.Event()
        self.source = "127.0.0.1"
        self.opened = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to), source_address=(self.source, 0))
                self.opened += 1
                self._sockets += [near, far]
                silent = self.silent
                for one, other in ((near, far), (far, near)):
                    self._threads.append(
                        threading.Thread(target=_pump, args=(one, other, silent), daemon=True)
                    )
                    self._threads[-1].start()

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)


def _pump(one: socket.socket, other: socket.socket, silent: threading.Event) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            if not silent.is_set():
                other.sendall(data)


def test_a_worker_whose_connection_died_without_a_word_comes_again_from_another_address(site: Site) -> None:
    credentials = site.key("w1", Role.WORKER, "gw")
    site.place.start()
    tunnel = Tunnel(site.port)
    client = site.client(credentials, f"tcp://127.0.0.1:{tunnel.port}")
    settle(client, opening())
    # What a changed address looks like: the old connection is neither answered nor closed, a new one works.
    old, tunnel.silent = tunnel.silent, threading.Event()
    tunnel.source = "127.0.0.2"
    old.set()
    client.submit(hole(1), read_clock())
    answers(client, lambda: client.pending == 0, 40)
    assert tunnel.opened >= 2
    client.close()
    tunnel.close()


def test_a_reader_that_never_reads_costs_no_memory_and_nobody_else(site: Site) -> None:
    reader = site.key("ruth", Role.READER)
    site.limit(other_messages_per_s=1000000)
    site.place.start()
    question = encode_request(Request("ruth", 0, 0, 0, 0, 5, GetStatus()))
    with raw_dealer(site.endpoint, reader) as deaf:
        deaf.set(zmq.RCVHWM, 1)
        deaf.disconnect(site.endpoint)
        deaf.connect(site.endpoint)
        for _ in range(30_000):
            deaf.send(question)
        site.wait(lambda: site.counters().get("frames not delivered", 0) > 100, 60)
    site.place.status()
