"""Many packets a second from one process: `python -m tests.lab.flood --from 10.0.0.1:7648 --to …`, in JSON.

All packets are made before the first is sent, and go out hundreds at a time (sendmmsg(2), by ctypes: Python
has none). The rate is what was asked for or what the machine gives, whichever is less, and is told.
"""

import argparse
import ctypes
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from rewriter.packet import Endpoint, build_udp
from tests.lab.traffic import open_continue, video
from tools.lab import Lab

MADE: Final = 16_384
"""So many different packets at most, sent again and again."""
AT_ONCE: Final = 256


class IoVector(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class Message(ctypes.Structure):
    """struct msghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(IoVector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class MessageHeader(ctypes.Structure):
    """struct mmsghdr (recvmmsg(2)): the octets that fill its message up count."""

    _fields_ = (("message", Message), ("sent", ctypes.c_uint32))


def send_all(raw: socket.socket, packets: Sequence[bytes], per_s: float, seconds: float) -> int:
    """Send them in turn, for so long; how many the kernel took."""
    send: Callable[..., int] = ctypes.CDLL(None, use_errno=True).sendmmsg
    vectors = (IoVector * len(packets))(*(IoVector(packet, len(packet)) for packet in packets))
    headers = (MessageHeader * len(packets))()
    for header, vector in zip(headers, vectors, strict=True):
        header.message.vectors, header.message.vector_count = ctypes.pointer(vector), 1
    began_s = time.monotonic()
    sent = tried = 0
    while (elapsed_s := time.monotonic() - began_s) < seconds:
        due = min(AT_ONCE, int(elapsed_s * per_s) + 1 - tried)
        if due <= 0:
            time.sleep((tried + 1) / per_s - elapsed_s)
            continue
        at = tried % len(packets)
        due = min(due, len(packets) - at)
        address = ctypes.addressof(headers) + at * ctypes.sizeof(MessageHeader)
        sent += max(0, send(raw.fileno(), ctypes.c_void_p(address), due, 0))
        tried += due
    return sent


def make_packets(kind: str, source: Endpoint, sources: int, destination: Endpoint) -> list[bytes]:
    """From `sources` addresses, from the first one upwards."""
    chance = random.Random(1)
    first = int(IPv4Address(source.address))
    sender = str(IPv4Address(source.address))
    payloads: dict[str, Callable[[int], bytes]] = {
        "talk": lambda _: open_continue(sender),
        "video": lambda number: video(sender, sequence=number),
        "random": lambda _: chance.randbytes(chance.randrange(200)),
    }
    return [
        build_udp(
            Endpoint(IPv4Address(first + number % sources).packed, source.port),
            destination,
            payloads[kind](number),
        )
        for number in range(sources if kind == "talk" else MADE)
    ]


@dataclass
class Flood:
    """What a flood came to: known when it has ended."""

    sent: int = 0
    per_s: int = 0


@contextmanager
def flooding(lab: Lab, place: str, *words: str) -> Iterator[Flood]:
    """A flood from a place of a laboratory, beside the block and to its own end; `words`: as below."""
    argv = ["nice", sys.executable, "-m", "tests.lab.flood", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = lab.start(place, argv, stdout=subprocess.PIPE, text=True, env=environment)
    flood = Flood()
    yield flood
    said, _ = process.communicate(timeout=120)
    told = json.loads(said)
    flood.sent, flood.per_s = told["sent"], told["per_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", choices=["talk", "video", "random"], default="talk")
    parser.add_argument("--from", dest="source", type=Endpoint.parse, required=True)
    parser.add_argument("--sources", type=int, default=1, help="addresses, from the first one upwards")
    parser.add_argument("--to", type=Endpoint.parse, required=True)
    parser.add_argument("--per-s", type=float, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    asked = parser.parse_args()
    packets = make_packets(asked.kind, asked.source, asked.sources, asked.to)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        raw.connect((str(IPv4Address(asked.to.address)), 0))
        began_s = time.monotonic()
        sent = send_all(raw, packets, asked.per_s, asked.seconds)
        elapsed_s = time.monotonic() - began_s
    sys.stdout.write(json.dumps({"sent": sent, "per_s": round(sent / elapsed_s)}) + "\n")


if __name__ == "__main__":
    main()
