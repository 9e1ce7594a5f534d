"""A tracker that listens by TCP, with its keys and those of the others."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from tests.crash.place import Place
from tracker.client import Credentials, TrackerClient
from tracker.clock import read_clock
from tracker.dialling import Connection
from tracker.keyring import TRACKER_ROLE, SecretKey, authorise, authorised_key, generate, write_secret_key
from tracker.messages import Body, ReplyBody, Request, Volatile, decode_reply, encode_request
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

    def configure(self, **more: object) -> None:
        """For the next start; `more`: settings of [tracker]."""
        self.place.write_configuration(
            **more,
            listen=[self.endpoint],
            server_key=self.place.directory / "server.key",
            authorised_keys=self.authority,
        )

    def limit(self, **limits: int) -> None:
        """For the next start."""
        lines = "".join(f"{name} = {value}\n" for name, value in limits.items())
        with self.place.configuration.open("a") as file:
            file.write(f"[tracker.limits]\n{lines}")

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


@contextmanager
def raw_dealer(endpoint: str, credentials: Credentials | None = None) -> Iterator[zmq.Socket[bytes]]:
    """A socket that keeps no manners: nothing of ours around it."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.set(zmq.LINGER, 0)
        raw.set(zmq.SNDHWM, 0)
        if credentials is not None:
            raw.set(zmq.CURVE_PUBLICKEY, credentials.own.public.encode())
            raw.set(zmq.CURVE_SECRETKEY, credentials.own.secret.encode())
            raw.set(zmq.CURVE_SERVERKEY, credentials.tracker.encode())
        raw.connect(endpoint)
        yield raw
