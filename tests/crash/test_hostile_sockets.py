"""Mutated messages at the sockets of a real tracker: no crash, memory flat, service to others goes on.

By hand: pytest tests/crash/test_hostile_sockets.py --mutations 1000000 --timeout 0
"""

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.crash.place import Place, hole, opening, settle
from tests.crash.remote_site import Site, raw_dealer
from tests.mutation import hostile_frames
from tracker.roles import Role

SEED = 20_261_122
PAGE = 4096
GROWTH_LIMIT = 24 * 2**20
"""Octets: what the allocator may keep for itself; a leak of a hundred octets for each frame is more."""


@pytest.fixture
def mutations(request: pytest.FixtureRequest) -> int:
    number: int = request.config.getoption("--mutations")
    return number


def resident(place: Place) -> int:
    """Octets of memory that the tracker has."""
    assert place.process is not None
    return int(Path(f"/proc/{place.process.pid}/statm").read_text().split()[1]) * PAGE


def sent_and_taken(raw: zmq.Socket[bytes], frames: Iterator[bytes]) -> None:
    """Sends the frames, and throws away whatever is answered."""
    for frame in frames:
        raw.send(frame)
        while raw.poll(0):
            raw.recv_multipart()


def test_mutated_messages_at_every_door_stop_nobody_and_fill_no_memory(place: Place, mutations: int) -> None:
    site = Site(place)
    site.limit(worker_messages_per_s=1_000_000, other_messages_per_s=1_000_000)
    keys = [None, None, None, site.key("w1", Role.WORKER, "gw"), site.key("olga", Role.OPERATOR)]
    endpoints = [place.endpoint, place.reader_endpoint, place.operator_endpoint, site.endpoint, site.endpoint]
    place.start()
    client = place.client("calm")
    settle(client, opening("calm"))
    assert place.process is not None
    share = mutations // (2 * len(endpoints))
    sizes = []
    for half in range(2):
        for number, (endpoint, key) in enumerate(zip(endpoints, keys, strict=True)):
            with raw_dealer(endpoint, key) as raw:
                raw.set(zmq.SNDHWM, 1000)
                sent_and_taken(raw, hostile_frames(SEED + 10 * half + number, share))
                settle(client, hole(10 * half + number))
        sizes.append(resident(place))
    client.close()
    counted = sum(count for name, count in site.counters().items() if name.startswith(("garbage", "refused")))
    assert counted > mutations * 0.4
    assert sizes[1] - sizes[0] < GROWTH_LIMIT, sizes
    assert place.process.poll() is None
    place.check()


def test_mutated_handshakes_and_frames_of_the_wire_stop_nobody(place: Place) -> None:
    place.start()
    client = place.client()
    settle(client, opening())
    chance = random.Random(SEED)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    talk = (
        greeting
        + b"\x04"
        + bytes([len(ready)])
        + ready
        + b"\x00\x05hello"
        + b"\x02"
        + (300).to_bytes(8, "big")
        + bytes(300)
    )
    for number in range(500):
        octets = bytearray(talk)
        for _ in range(chance.randrange(1, 6)):
            octets[chance.randrange(len(octets))] = chance.randrange(256)
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(place.reader_endpoint.removeprefix("ipc://"))
            raw.settimeout(5)
            try:
                raw.sendall(octets[: chance.randrange(len(octets))] if number % 3 == 0 else octets)
            except (BrokenPipeError, ConnectionResetError):
                continue
    settle(client, hole(1))
    client.close()
    assert place.status().run == 1
