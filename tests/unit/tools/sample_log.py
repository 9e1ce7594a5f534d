"""A small log with a known story, for the reading commands.

gateway gw1, public address 192.0.2.2, service cuseeme (udp/7648-7649, tcp/7648-7649, udp/24032), 2026-05-04:
16:00:00 tracker and session begin · 16:01:00.123456789 .10 binds, is named, .11 refused · 16:05:00 .10 hangs
up · 16:06:00 .11 binds, open · 16:10:00 to 16:20:00 tracker down · 16:30:00 something of an unknown type
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from eventlog.record import Record, Source
from eventlog.store import Log
from tracker.events import (
    BindingInstalled,
    BindingWithdrawn,
    Ending,
    Event,
    HolderNamed,
    Policy,
    PortBound,
    PortRange,
    PortRefused,
    PortUnbound,
    RefusalsEnded,
    Resource,
    ServiceDefined,
    ServiceDefinition,
    SessionOpened,
    Sharing,
    TrackerStarted,
    to_record,
)
from tracker.projections import PROJECTIONS

NS: Final = 1_000_000_000
START_NS: Final = int(datetime(2026, 5, 4, 16, tzinfo=UTC).timestamp()) * NS
UNKNOWN_TYPE: Final = 9999
EVIL_NAME: Final = 'Bob\x1b[2J "x" [red]'
"""What a packet may call its user: an escape sequence, quotes, markup."""


def at(minutes: int, ns: int = 0) -> int:
    return START_NS + minutes * 60 * NS + ns


BOUND_NS: Final = at(1, 123_456_789)
PUBLIC: Final = IPv4Address("192.0.2.2").packed
REFLECTOR: Final = IPv4Address("203.0.113.10").packed
RESOURCE: Final = Resource("gw1", PUBLIC, "cuseeme", None)
SERVICE: Final = ServiceDefinition(
    "cuseeme",
    (PortRange(17, 7648, 7648),),
    (PortRange(17, 7648, 7649), PortRange(6, 7648, 7649), PortRange(17, 24032, 24032)),
    Policy.FIRST,
    Sharing.EXCLUSIVE,
    300_000,
    None,
)


def host(number: int) -> bytes:
    return IPv4Address(f"192.168.1.{number}").packed


def mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


def bound(binding: int, number: int) -> PortBound:
    return PortBound(binding, RESOURCE, host(number), mac(number), 1, 17, 7648, REFLECTOR, 7648)


STORY: Final[Sequence[tuple[int, Event]]] = (
    (at(0), TrackerStarted(1, "0.1.0", "boot", None)),
    (at(0), ServiceDefined("gw1", SERVICE)),
    (at(0), SessionOpened("gw1", 1, "gw1", "host/boot", (PUBLIC,), 10_000, fence=False)),
    (BOUND_NS, bound(1, 10)),
    (at(1, NS), BindingInstalled("gw1", 1, 1, at(1, NS))),
    (at(2), HolderNamed("gw1", 1, 1, EVIL_NAME)),
    (at(3), PortRefused(1, host(11), mac(11), 17, 7648, REFLECTOR, 7648)),
    (at(5), BindingWithdrawn("gw1", 1, 1, Ending.HANG_UP, at(5), at(5) - NS, 4711, 99, None)),
    (at(5), RefusalsEnded(1, host(11), 3, at(4))),
    (at(5), PortUnbound(1, Ending.HANG_UP)),
    (at(6), bound(2, 11)),
    (at(20), TrackerStarted(2, "0.1.0", "boot", at(10))),
)


def records() -> list[Record]:
    story = [
        to_record(event, wall_ns=wall_ns, source=Source("tracker", 1, number + 1, 0), nonce=bytes(16))
        for number, (wall_ns, event) in enumerate(STORY)
    ]
    unknown = Record(
        1, UNKNOWN_TYPE, at(30), None, Source("tracker", 1, len(story) + 1, 0), bytes(16), ("what",)
    )
    return [*story, unknown]


def write_sample_log(path: Path) -> Path:
    with Log.open(path, projections=PROJECTIONS) as log:
        log.append(records())
    return path
