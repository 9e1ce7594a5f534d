"""What the simulated client and the simulated reflector share: what they put out, and how they name things.

Rule: both are cores without I/O; `tools.simulated` carries their outputs out.
"""

from dataclasses import dataclass, field
from socket import inet_aton, inet_ntoa
from typing import Final

from rewriter.cuseeme import DataType, Endpoint

CUSEEME_PORT: Final = 7648

_KINDS: Final[dict[int, str]] = {
    DataType.SMALL_VIDEO: "video",
    DataType.BIG_VIDEO: "video",
    DataType.AUDIO: "audio",
    DataType.ACKNOWLEDGEMENT: "acknowledgement",
    DataType.OPEN_CONTINUE: "open_continue",
    DataType.TEXT_THEN_DISCONNECT: "text",
    DataType.MESSAGE_OF_THE_DAY: "message_of_the_day",
    DataType.RATE_REQUEST: "rate_request",
    DataType.RATE_REPLY: "rate_reply",
}


@dataclass(frozen=True, slots=True)
class Send:
    """A datagram to send; `checksum` False sends it with a UDP checksum of 0."""

    payload: bytes
    destination: Endpoint
    checksum: bool = True


@dataclass(frozen=True, slots=True)
class Note:
    """A fact for whoever watches: one JSON line."""

    event: str
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Open:
    """Open the UDP socket, if it is closed."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the UDP socket: later packets are answered by the host with ICMP port unreachable."""


Output = Send | Note | Open | Close


def text(data_type: int) -> str:
    """The word for a data type in events and counters."""
    known = _KINDS.get(data_type)
    return known or f"type_{data_type}"


def dotted(address: bytes) -> str:
    """4 bytes as people write them."""
    return inet_ntoa(address)


def named(endpoint: Endpoint) -> str:
    """An endpoint as people write it."""
    return f"{dotted(endpoint.address)}:{endpoint.port}"


def read_endpoint(words: str) -> Endpoint:
    """Read `ADDRESS[:PORT]`, 7648 if no port is given; ValueError if it is neither."""
    address, _, port = words.partition(":")
    try:
        return Endpoint(inet_aton(address), int(port or CUSEEME_PORT))
    except OSError as error:
        raise ValueError(f"{address!r} is no IPv4 address") from error


def speakers(payload: bytes) -> list[bytes]:
    """The speaker addresses that an audio packet of ours declares and holds."""
    if len(payload) < 34:
        return []
    count = min(payload[26] & 0x3F, (len(payload) - 34) // 4)
    return [payload[34 + 4 * number : 38 + 4 * number] for number in range(count)]
