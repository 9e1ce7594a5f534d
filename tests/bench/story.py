"""What a tracker would have logged in years: the same records for the same seed, in the order of their times.

Twenty gateways share one CU-SeeMe service each among two hundred hosts. A binding lasts minutes, is claimed,
installed, mostly named, sometimes refused to others, withdrawn and unbound; the tracker is restarted each
week, and workers are lost now and then. Nothing here is measured: it only has the shape of the real thing.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from eventlog.record import NONCE_SIZE, Record, Source
from tests.unit.tools.sample_log import SERVICE
from tracker.events import (
    TRACKER,
    BindingInstalled,
    BindingWithdrawn,
    Ending,
    Event,
    HolderNamed,
    PortBound,
    PortRefused,
    PortUnbound,
    RefusalsEnded,
    Resource,
    ServiceDefined,
    SessionOpened,
    TrackerStarted,
    WorkerLost,
    WorkerReturned,
    to_record,
)

SECOND_NS: Final = 1_000_000_000
BEGIN_NS: Final = int(datetime(2015, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS
GATEWAYS: Final = 20
HOSTS: Final = 200
RESTART_NS: Final = 7 * 86_400 * SECOND_NS
_NAMES: Final = ("Ada", "Bernd", "Chiara", "Dmitri", "Esra", "Farid", "Grace", "Hans", "Ines", "Jo")


@dataclass(slots=True)
class _Gateway:
    name: str
    address: bytes
    worker: str
    incarnation: int
    sequence: int = 0


class Story:
    """An endless sequence of records; take as many as are wanted."""

    def __init__(self, seed: int = 1) -> None:
        self._chance = random.Random(seed)
        self._binding = 0
        self._run = 0
        self._due: list[tuple[int, int, _Gateway | None]] = []
        self._gateways = [
            _Gateway(
                f"gateway-{number}", bytes((192, 0, 2, number)), f"gateway-{number}", BEGIN_NS + number * 7
            )
            for number in range(1, GATEWAYS + 1)
        ]

    def records(self) -> Iterator[Record]:
        yield from self._restart(BEGIN_NS)
        for gateway in self._gateways:
            yield from self._begin(gateway, BEGIN_NS + SECOND_NS)
        waiting = [(BEGIN_NS + RESTART_NS, 0)]
        waiting += [(BEGIN_NS + self._within(60), number) for number in range(1, GATEWAYS + 1)]
        heapq.heapify(waiting)
        pending: list[tuple[int, int, Record]] = []
        order = 0
        while True:
            at_ns, who = heapq.heappop(waiting)
            while pending and pending[0][0] <= at_ns:
                yield heapq.heappop(pending)[2]
            if who == 0:
                told = list(self._restart(at_ns))
                next_ns = at_ns + RESTART_NS
            else:
                told = list(self._binding_of(self._gateways[who - 1], at_ns))
                next_ns = told[-1].wall_ns + self._within(900)
            for record in told:
                order += 1
                heapq.heappush(pending, (record.wall_ns, order, record))
            heapq.heappush(waiting, (next_ns, who))

    def _within(self, seconds: float) -> int:
        return self._chance.randrange(1_000_000, round(seconds * SECOND_NS))

    def _record(self, event: Event, wall_ns: int, source: Source) -> Record:
        return to_record(event, wall_ns=wall_ns, source=source, nonce=self._chance.randbytes(NONCE_SIZE))

    def _told(self, gateway: _Gateway, wall_ns: int, *events: Event) -> Iterator[Record]:
        gateway.sequence += 1
        for part, event in enumerate(events):
            source = Source(gateway.worker, gateway.incarnation, gateway.sequence, part)
            yield self._record(event, wall_ns, source)

    def _restart(self, at_ns: int) -> Iterator[Record]:
        self._run += 1
        alive_ns = None if self._run == 1 else at_ns - self._within(5)
        event = TrackerStarted(self._run, "0.1.0", "gateway 0c4a1f2e-boot", alive_ns)
        yield self._record(event, at_ns, Source(TRACKER, self._run, 1, 0))

    def _begin(self, gateway: _Gateway, at_ns: int) -> Iterator[Record]:
        opened = SessionOpened(
            gateway.name, 1, gateway.worker, "host/boot", (gateway.address,), 10_000, fence=False
        )
        yield from self._told(gateway, at_ns, opened, ServiceDefined(gateway.name, SERVICE))

    def _binding_of(self, gateway: _Gateway, at_ns: int) -> Iterator[Record]:
        self._binding += 1
        binding = self._binding
        resource = Resource(gateway.name, gateway.address, SERVICE.name, None)
        holder, mac = self._host()
        peer = bytes((203, 0, 113, self._chance.randrange(1, 40)))
        yield from self._told(
            gateway, at_ns, PortBound(binding, resource, holder, mac, 1, 17, 7648, peer, 7648)
        )
        at_ns += self._within(0.02)
        seen_ns = at_ns - self._within(0.005)
        yield from self._told(gateway, at_ns, BindingInstalled(gateway.name, 1, binding, seen_ns))
        if self._chance.random() < 0.7:
            at_ns += self._within(3)
            name = f"{self._chance.choice(_NAMES)} {holder[3]}"
            yield from self._told(gateway, at_ns, HolderNamed(gateway.name, 1, binding, name))
        refused = None
        if self._chance.random() < 0.3:
            at_ns += self._within(300)
            refused, refused_mac = self._host()
            event = PortRefused(binding, refused, refused_mac, 17, 7648, peer, 7648)
            yield from self._told(gateway, at_ns, event)
        if self._chance.random() < 0.002:
            yield from self._lost(gateway, at_ns + SECOND_NS)
            at_ns += 90 * SECOND_NS
        at_ns += self._within(1800)
        seen_ns = at_ns - self._within(0.005)
        reason = Ending.IDLE if self._chance.random() < 0.4 else Ending.HANG_UP
        packets = self._chance.randrange(20, 90_000)
        withdrawn = BindingWithdrawn(
            gateway.name, 1, binding, reason, seen_ns, seen_ns - self._within(300), packets, packets * 577, 0
        )
        ended: list[Event] = [withdrawn]
        if refused is not None:
            count = self._chance.randrange(1, 60)
            ended.append(RefusalsEnded(binding, refused, count, at_ns - self._within(20)))
        yield from self._told(gateway, at_ns, *ended, PortUnbound(binding, reason))

    def _lost(self, gateway: _Gateway, at_ns: int) -> Iterator[Record]:
        lost = WorkerLost(gateway.name, 1, gateway.worker, at_ns - 10 * SECOND_NS)
        yield self._record(lost, at_ns, Source(TRACKER, self._run, self._binding + 1, 0))
        back_ns = at_ns + 60 * SECOND_NS
        back = WorkerReturned(gateway.name, 1, gateway.worker, lost.last_heard_ns)
        yield self._record(back, back_ns, Source(TRACKER, self._run, self._binding + 1, 1))

    def _host(self) -> tuple[bytes, bytes]:
        number = self._chance.randrange(HOSTS)
        return bytes((192, 168, 1, number)), bytes((2, 0x50, 0xBA, 7, number // 16, number))
