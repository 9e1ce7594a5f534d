"""TCP: who has an authorised key is served as what it says, and nobody else; real processes, real sockets."""

import socket
import time
from collections.abc import Callable

import pytest
import zmq

from tests.crash.place import Place, answers, claim, hole, opening, settle
from tracker.client import Credentials, TrackerClient
from tracker.clock import read_clock
from tracker.dialling import Connection
from tracker.events import PortBound, SessionOpened
from tracker.keyring import (
    TRACKER_ROLE,
    SecretKey,
    authorise,
    authorised_key,
    generate,
    revoke,
    write_secret_key,
)
from tracker.messages import (
    Body,
    ClaimGranted,
    GetStatus,
    MakeCheckpoint,
    NoCheckpoint,
    NotAllowed,
    ReplyBody,
    Request,
    SessionGranted,
    Status,
    Volatile,
    decode_reply,
    encode_request,
)
from tracker.roles import Role


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Site:
    """A tracker that listens by TCP, its keys, and those of the others."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.port = free_port()
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.authority = place.directory / "keys"
        self.authority.mkdir(mode=0o755)
        self.own = generate(TRACKER_ROLE, "tracker")
        write_secret_key(place.directory / "server.key", self.own)
        self.configure()

    def configure(self, **settings: object) -> None:
        self.place.write_configuration(
            listen=[self.endpoint],
            server_key=self.place.directory / "server.key",
            authorised_keys=self.authority,
            **settings,
        )

    def key(self, name: str, role: Role, *gateways: str, known: bool = True) -> Credentials:
        """A new key, and the tracker's; `known`: authorised."""
        made = generate(role.value, name)
        if known:
            self.authorise(made, role, *gateways)
        return Credentials(made, self.own.public)

    def authorise(self, made: SecretKey, role: Role, *gateways: str) -> None:
        authorise(self.authority, authorised_key(made.name, role, gateways, made.public))

    def client(self, credentials: Credentials, endpoint: str | None = None) -> TrackerClient:
        name = credentials.own.name
        return TrackerClient.open(
            endpoint or self.endpoint,
            worker=name,
            outbox=self.place.directory / f"{name}.outbox",
            now=read_clock(),
            credentials=credentials,
        )

    def say(self, credentials: Credentials, body: Body, name: str | None = None) -> ReplyBody | None:
        """What the tracker answers; None: nothing in time."""
        with zmq.Context() as context:
            line = Connection(context, self.endpoint, credentials, immediate=False)
            try:
                sequence = 0 if isinstance(body, Volatile) else 1
                line.socket.send(
                    encode_request(Request(name or credentials.own.name, 7, sequence, 0, 0, 5, body))
                )
                return decode_reply(line.socket.recv()).body if line.socket.poll(5000) else None
            finally:
                line.close()

    def counters(self) -> dict[str, int]:
        return {it.name: it.value for it in self.place.status().counters}

    def wait(self, fact: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not fact():
            assert time.monotonic() < end, self.counters()
            time.sleep(0.05)


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
